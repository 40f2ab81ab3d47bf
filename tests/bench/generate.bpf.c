/* SPDX-License-Identifier: Apache-2.0 */
/* The two ends of a measurement: frames of many flows in turn, made in the kernel, and a place where they end. */
#include "helpers.h"

volatile const __u32 OUT = 0;   /* index of the interface that they leave by */
volatile const __u32 FLOWS = 1; /* which differ in their IPv4 source, from 10.0.0.0 on */
volatile const __u64 END = 0;   /* CLOCK_MONOTONIC, in ns */

static long (*bpf_redirect)(__u32 interface, __u64 flags) = (void *)BPF_FUNC_redirect;

__u32 flow = 0;

#define SOURCE (10u << 24)

/* The frame is an Ethernet and an IPv4 header, whose checksum is that of source 0. */
SEC("xdp")
int generate(struct xdp_md *frame)
{
    void *data = (void *)(long)frame->data;
    __u32 *source = data + 26, address, sum;
    __u16 *checksum = data + 24;

    if ((void *)(source + 1) > (void *)(long)frame->data_end)
        return XDP_ABORTED;
    if (bpf_ktime_get_coarse_ns() > END)
        return XDP_DROP;
    address = SOURCE + flow;
    flow = flow + 1 >= FLOWS ? 0 : flow + 1;
    /* The kernel uses its frames again as they were left. */
    sum = be16(*checksum) + be16(*source >> 16) + be16(*source & 0xffff);
    *source = be32(address);
    sum += (__u16)~(address >> 16) + (__u16)~(address & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    *checksum = be16((sum >> 16) + (sum & 0xffff));
    return bpf_redirect(OUT, 0);
}

SEC("xdp")
int end(struct xdp_md *frame)
{
    return XDP_DROP;
}
