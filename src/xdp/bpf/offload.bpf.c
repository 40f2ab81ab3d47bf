/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device: finds a frame's rule, and marks the frame for the poller or handles it wholly.
 *
 *   frame ─► key ─► the mask that a packet like this was found under last ─┬─► rule ─► full: edit, send, count ─► wire
 *              │    └─► each mask, the most hit first ─────────────────────┤      └──► mark, count ─┐
 *              └─ not to be read here ────────────────────────────── none ─┴► unmark ───────────────┴─► the queue's socket
 */
#include "edit.h"

INLINE struct rule *probe(const struct table *table, __u32 place, const struct key *packet)
{
    const struct key *mask = &table->mask[place & (MASKS - 1)];
    struct key key;
    int i;

#pragma clang loop unroll(full)
    for (i = 0; i < WORDS; i++)
        key.word[i] = packet->word[i] & mask->word[i];
    key.word[0] |= table->number[place & (MASKS - 1)];
    return bpf_map_lookup_elem(&rules, &key);
}

INLINE __u32 hash(const struct key *key)
{
    __u64 sum = 0;
    int i;

#pragma clang loop unroll(full)
    for (i = 0; i < WORDS; i++)
        sum = (sum ^ key->word[i]) * 0x9e3779b97f4a7c15ull;
    return sum >> 46;
}

_Static_assert(HINTS == 1 << (64 - 46), "the hash's bits are an index of hints");

/* Every mask may be tried in any order: rules that overlap do the same, for so megaflows are made. */
INLINE struct rule *find(struct scratch *scratch, const struct table *table, struct cpu *cpu)
{
    const struct key *packet = &scratch->key;
    __u32 zero = 0, count = table->count, place, tried = MASKS;
    struct hints *remembered;
    struct rule *rule;
    __u8 *hint = 0;

    if (count > 1) {
        remembered = bpf_map_lookup_elem(&hints, &zero);
        if (!remembered)
            return 0;
        hint = &remembered->place[hash(packet) & (HINTS - 1)];
        tried = (__u32)*hint - 1;
        if (tried < count && tried < MASKS) {
            rule = probe(table, tried, packet);
            if (rule) {
                cpu->mask_hits[table->slot[tried & (MASKS - 1)] & (MASKS - 1)]++;
                return rule;
            }
        }
    }
#pragma clang loop unroll(disable)
    for (place = 0; place < MASKS; place++) {
        if (place >= count)
            break;
        if (place == tried)
            continue;
        rule = probe(table, place, packet);
        if (rule) {
            if (hint)
                *hint = place + 1;
            cpu->mask_hits[table->slot[place & (MASKS - 1)] & (MASKS - 1)]++;
            return rule;
        }
    }
    return 0;
}

INLINE void counted(const struct rule *rule, __u32 processor, __u32 len)
{
    __u32 at = processor * RULES + rule->slot;
    struct count *count = bpf_map_lookup_elem(&counts, &at);

    if (count) {
        count->packets++;
        count->bytes += len;
        count->used_ns = bpf_ktime_get_coarse_ns();
    }
}

/* Puts a mark in front of the frame. */
INLINE int put_meta(struct xdp_md *frame, __u32 mark, __u32 generation)
{
    struct meta *meta;

    if (bpf_xdp_adjust_meta(frame, -(int)sizeof(*meta)))
        return 0;
    meta = (void *)(long)frame->data_meta;
    if ((void *)(meta + 1) > (void *)(long)frame->data)
        return 0;
    meta->mark = mark;
    meta->generation = generation;
    return 1;
}

/*
 * Puts no mark there, as such. Where a frame finds the socket's ring full, its memory is the next frame's without the poller having seen
 * it, and with what stood in front. 0: one might stand there.
 */
INLINE int unmark(struct xdp_md *frame)
{
    /* A driver without such a place never has a mark there. */
    return put_meta(frame, 0, 0) || frame->data_meta > frame->data;
}

INLINE int to_socket(struct xdp_md *frame, const struct port *port, struct port_counts *passed)
{
    __u32 queue = frame->rx_queue_index;
    long action = XDP_DROP;

    if (queue < QUEUES)
        action = bpf_redirect_map(&sockets, port->slot * QUEUES + queue, XDP_DROP);
    if (action != XDP_REDIRECT)
        passed->unheard++;
    return action;
}

INLINE int forward(struct xdp_md *frame, __u32 processor, struct cpu *cpu, const struct port *port)
{
    struct port_counts *passed = &cpu->ports[port->slot & (PORTS - 1)];
    __u32 zero = 0, current, len = bpf_xdp_get_buff_len(frame);
    struct control *controls = bpf_map_lookup_elem(&control, &zero);
    struct scratch *scratch = bpf_map_lookup_elem(&scratches, &zero);
    struct layers *layers;
    struct table *table;
    struct rule *rule;

    if (!controls || !scratch || controls->fenced)
        goto missed;
    current = controls->current & 1;
    table = bpf_map_lookup_elem(&tables, &current);
    if (!table || table->count == 0)
        goto missed;
    layers = &scratch->layers;
    __builtin_memset(&scratch->key, 0, sizeof(scratch->key));
    __builtin_memset(layers, 0, sizeof(*layers));
    if (!parse(frame, len, &scratch->key, layers))
        goto missed;
    scratch->key.word[0] = (__u64)port->number << 32;
    rule = find(scratch, table, cpu);
    if (!rule)
        goto missed;

    if (rule->does & DOES_FULL) {
        if (rule->does & DOES_DROP) {
            counted(rule, processor, len);
            passed->full++;
            passed->full_bytes += len;
            return XDP_DROP;
        }
        /* Where the port is gone, nothing has been changed yet. */
        if (bpf_redirect_map(&wires, rule->out, XDP_ABORTED) == XDP_REDIRECT &&
            can_edit(rule, layers, frame->data_end - frame->data) && edit(frame, rule, layers)) {
            counted(rule, processor, len);
            passed->full++;
            passed->full_bytes += len;
            cpu->ports[rule->out & (PORTS - 1)].sent++;
            return XDP_REDIRECT;
        }
    }
    if (put_meta(frame, rule->mark, port->generation)) {
        counted(rule, processor, len);
        passed->hits++;
        if (rule->does & DOES_FULL)
            passed->aborted++;
        return to_socket(frame, port, passed);
    }
missed:
    passed->misses++;
    if (!unmark(frame)) {
        passed->unheard++;
        return XDP_DROP;
    }
    return to_socket(frame, port, passed);
}

/* Takes the next turn. A barrier, for the old value is fetched: whoever has changed something and then sees an even turn is seen. */
INLINE void turn(struct cpu *cpu)
{
    __u64 old = __sync_fetch_and_add(&cpu->turn, 1);

    asm volatile("" ::"r"(old));
}

SEC("xdp.frags")
int offload(struct xdp_md *frame)
{
    __u32 processor = bpf_get_smp_processor_id(), interface = frame->ingress_ifindex;
    struct cpu *cpu = bpf_map_lookup_elem(&cpus, &processor);
    struct port *port;
    int action = XDP_DROP;

    if (!cpu)
        return XDP_DROP;
    turn(cpu);
    port = bpf_map_lookup_elem(&ports, &interface);
    if (port)
        action = forward(frame, processor, cpu, port);
    turn(cpu);
    return action;
}
