/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames that the daemon has laid into memory leave by an interface, a batch of them in one call. The daemon runs this program itself
 * (BPF_PROG_RUN); it is attached nowhere. The frames become packets of the kernel's like any other, and what receives them in this
 * machine sees them when the last has left, together: that is what a call a frame pays for each time.
 */
#include "helpers.h"

static long (*bpf_skb_store_bytes)(struct __sk_buff *packet, __u32 at, const void *from, __u32 len, __u64 flags) =
    (void *)BPF_FUNC_skb_store_bytes;
static long (*bpf_skb_change_tail)(struct __sk_buff *packet, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*bpf_clone_redirect)(struct __sk_buff *packet, __u32 interface, __u64 flags) = (void *)BPF_FUNC_clone_redirect;

#define FRAMES 32
#define ROOM (1 << 16) /* for the frames' bytes */
#define SHORTEST 14
#define LONGEST 3400

#define NO_MEMORY (-12)

/* `outbox.rs` describes the same in Rust. */
struct outbox {
    __u32 interface; /* index of the one that they leave by */
    __u32 queue;     /* number of its transmit queue, so that they leave in order; as far as it has as many */
    __u32 count;
    __u32 unused;
    /* What became of them; for the rest there was no room. */
    __u32 sent;
    __u32 failed;
    __u64 sent_bytes;
    struct {
        __u32 at;
        __u32 len;
    } frames[FRAMES];
    __u8 bytes[ROOM + LONGEST];
};

struct {
    uint_of(type, BPF_MAP_TYPE_ARRAY);
    uint_of(max_entries, 1);
    uint_of(map_flags, BPF_F_MMAPABLE);
    type_of(key, __u32);
    type_of(value, struct outbox);
} outboxes SEC(".maps");

SEC("classifier")
int send(struct __sk_buff *packet)
{
    __u32 zero = 0, i, at, len, longest = packet->len, now = longest;
    struct outbox *outbox = bpf_map_lookup_elem(&outboxes, &zero);
    long answer;

    if (!outbox)
        return 0;
    /* As the kernel records where a packet came from, and sends it on. */
    packet->queue_mapping = outbox->queue + 1;
#pragma clang loop unroll(disable)
    for (i = 0; i < FRAMES; i++) {
        if (i >= outbox->count)
            break;
        at = outbox->frames[i].at;
        len = outbox->frames[i].len;
        /*
         * Never longer than it was at first: the kernel would not see to it that the memory of one that grows is accounted for (pskb_expand_head
         * looks at its socket), and a receiver that is told of less memory than there are bytes counts wrong, or worse.
         */
        if (at >= ROOM || len < SHORTEST || len > LONGEST || len > longest) {
            outbox->failed++;
            continue;
        }
        if (len != now && bpf_skb_change_tail(packet, len, 0))
            continue;
        now = len;
        if (bpf_skb_store_bytes(packet, 0, outbox->bytes + at, len, BPF_F_INVALIDATE_HASH))
            continue;
        answer = bpf_clone_redirect(packet, outbox->interface, 0);
        /* Above 0, this one was dropped, or another in its place. Counted in memory, of which the verifier follows no values. */
        if (answer == 0) {
            outbox->sent++;
            outbox->sent_bytes += len;
        } else if (answer < 0 && answer != NO_MEMORY) {
            outbox->failed++;
        }
    }
    return 0;
}
