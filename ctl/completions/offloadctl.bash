# Completion of offloadctl for bash: eval "$(offloadctl completions bash)", or in /usr/share/bash-completion/completions/.
_offloadctl() {
    local IFS=$'\n' word=${COMP_LINE:0:COMP_POINT}
    # Words as the user sees them, not cut at ':' as bash would.
    local -a words
    IFS=' ' read -ra words <<<"$word"
    [[ $word == *' ' ]] && words+=('')
    COMPREPLY=($(offloadctl complete -- "${words[@]:1}" 2>/dev/null))
    # Bash puts in what follows the last ':' or '='.
    local last=${words[-1]} cut
    cut=${last%"${last##*[:=]}"}
    if [[ -n $cut && $COMP_WORDBREAKS == *[:=]* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    fi
}
complete -o default -F _offloadctl offloadctl
