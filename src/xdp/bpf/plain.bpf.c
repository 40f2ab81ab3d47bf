/* SPDX-License-Identifier: Apache-2.0 */
/* Every frame goes to the socket of the queue that it came from, with nothing written in front of it. */
#include "helpers.h"

struct {
    uint_of(type, BPF_MAP_TYPE_XSKMAP);
    uint_of(max_entries, 64);
    type_of(key, __u32);
    type_of(value, __u32);
} sockets SEC(".maps");

/* Frames of a queue without a socket are dropped: the interface is the switch's, not the host's. */
SEC("xdp.frags")
int plain(struct xdp_md *frame)
{
    return bpf_redirect_map(&sockets, frame->rx_queue_index, XDP_DROP);
}

/* The same for kernels older than 5.18, which know no frames in several buffers. */
SEC("xdp")
int plain_single(struct xdp_md *frame)
{
    return bpf_redirect_map(&sockets, frame->rx_queue_index, XDP_DROP);
}
