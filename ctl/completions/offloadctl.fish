# Completion of offloadctl for fish: in ~/.config/fish/completions/ or /usr/share/fish/vendor_completions.d/.
function __offloadctl_complete
    set -l words (commandline -opc) (commandline -ct)
    offloadctl complete -- $words[2..-1] 2>/dev/null
end
complete -c offloadctl -a '(__offloadctl_complete)'
