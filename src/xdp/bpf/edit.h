/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rewriting headers, as the daemon's `packet::edit` does it, bit for bit; or leaving the whole packet to the daemon when that cannot be.
 * Checksums are amended by the difference (RFC 1624).
 */
#pragma once

#include "parse.h"

/* The furthest that a transport header stands: two tags and one that was pushed, IPv6. */
#define NETWORK_MOST (14 + 3 * 4)
#define TRANSPORT_MOST (NETWORK_MOST + 40)

/* What `at` is known to be at most, in bits: here, for the verifier, which in Linux 6.1 forgets a comparison of what is then copied. */
INLINE void *place(void *data, __u32 at)
{
    asm volatile("%0 &= 0x7f" : "+r"(at));
    return data + at;
}

_Static_assert(TRANSPORT_MOST <= 0x7f, "that is no more than what is known");

/* Adds what a 32-bit word's change adds to a sum of 16-bit words. The order of bytes does not matter (RFC 1071 §2). */
INLINE __u64 change(__u32 *word, const struct edit *edit, __u64 sum)
{
    __u32 old = *word, now = (old & ~edit->mask) | edit->value;

    *word = now;
    return sum + (__u32)~old + now;
}

INLINE __u16 fold(__u64 sum)
{
    sum = (sum >> 32) + (__u32)sum;
    sum = (sum >> 32) + (__u32)sum;
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    return (sum >> 16) + (sum & 0xffff);
}

INLINE void amend(__u16 *checksum, __u64 sum)
{
    *checksum = ~fold((__u16)~*checksum + sum);
}

/* Where the transport checksum that covers the addresses stands behind the transport header's start; 0: there is none. */
INLINE __u32 checksum_offset(const struct layers *layers)
{
    if (layers->frag == FRAG_LATER)
        return 0;
    if (layers->proto == IP_TCP)
        return 16;
    if (layers->proto == IP_UDP)
        return 6;
    return layers->proto == IP_ICMP6 && layers->network == NETWORK_IPV6 ? 2 : 0;
}

/* Whether the packet has all that the rule rewrites, and no more than can be rewritten here. */
INLINE int can_edit(const struct rule *rule, const struct layers *layers, __u32 linear)
{
    __u32 does = rule->does, offset;

    if ((does & (DOES_POP | DOES_VLAN)) && layers->tags == 0)
        return 0;
    if ((does & DOES_IPV4) && layers->network != NETWORK_IPV4)
        return 0;
    if ((does & DOES_IPV6) && layers->network != NETWORK_IPV6)
        return 0;
    if ((does & (DOES_TCP | DOES_UDP)) &&
        (!layers->transport || layers->proto != (does & DOES_TCP ? IP_TCP : IP_UDP)))
        return 0;
    if (does & DOES_ADDRESSES && layers->frag != FRAG_LATER) {
        if (layers->proto == IP_DCCP || layers->proto == IP_UDPLITE)
            return 0;
        offset = checksum_offset(layers);
        if (offset && layers->transport_at + offset + 2 <= layers->end && layers->transport_at + offset + 2 > linear)
            return 0;
    }
    return 1;
}

/* Lets the transport checksum follow `sum`. */
INLINE void amend_transport(void *data, const void *end, const struct layers *layers, __u32 transport_at, __u64 sum)
{
    __u32 offset = checksum_offset(layers);
    __u16 *checksum;

    if (!offset || layers->transport_at + offset + 2 > layers->end || transport_at > TRANSPORT_MOST)
        return;
    checksum = place(data, transport_at) + offset;
    if ((void *)(checksum + 1) > end)
        return;
    if (layers->proto != IP_UDP) {
        amend(checksum, sum);
    } else if (*checksum) {
        amend(checksum, sum);
        /* Zero would say that there is none (RFC 768). */
        if (!*checksum)
            *checksum = 0xffff;
    }
}

/* Does all that the rule says but the output. 0: nothing was changed. */
INLINE int edit(struct xdp_md *frame, const struct rule *rule, const struct layers *layers)
{
    __u32 does = rule->does, network_at = layers->network_at, transport_at = layers->transport_at, i;
    __u32 *ip, *ports;
    void *data, *end;
    __u64 header = 0, addresses = 0;
    int moved = 0;

    if ((does & (DOES_PUSH | DOES_POP)) == DOES_PUSH) {
        if (bpf_xdp_adjust_head(frame, -4))
            return 0;
        moved = 4;
    }
    data = (void *)(long)frame->data;
    end = (void *)(long)frame->data_end;
    network_at += moved;
    transport_at += moved;
    if (data + 14 + 4 > end)
        return 0;
    if (moved) {
        __builtin_memmove(data, data + 4, 12);
        *(__u32 *)(data + 12) = rule->tag;
    } else if (does & DOES_VLAN) {
        *(__u32 *)(data + 12) = (*(__u32 *)(data + 12) & ~rule->tag_mask) | rule->tag;
    }
    if (does & DOES_ETH)
        for (i = 0; i < ETH_WORDS; i++)
            change(data + 4 * i, &rule->eth[i], 0);

    ip = place(data, network_at);
    if ((does & DOES_IPV4) && network_at <= NETWORK_MOST && (void *)(ip + 5) <= end) {
        header = change(ip, &rule->net[0], header);
        header = change(ip + 2, &rule->net[2], header);
        if (does & DOES_ADDRESSES) {
            addresses = change(ip + 3, &rule->net[3], addresses);
            addresses = change(ip + 4, &rule->net[4], addresses);
        }
        amend((__u16 *)(ip) + 5, header + addresses);
    }
    if ((does & DOES_IPV6) && network_at <= NETWORK_MOST && (void *)(ip + 10) <= end) {
        change(ip, &rule->net[0], 0);
        change(ip + 1, &rule->net[1], 0);
        if (does & DOES_ADDRESSES)
            for (i = 2; i < NET_WORDS; i++)
                addresses = change(ip + i, &rule->net[i], addresses);
    }
    ports = place(data, transport_at);
    if ((does & (DOES_TCP | DOES_UDP)) && transport_at <= TRANSPORT_MOST && (void *)(ports + 1) <= end)
        addresses = change(ports, &rule->tp, addresses);
    if (addresses)
        amend_transport(data, end, layers, transport_at, addresses);

    if ((does & (DOES_PUSH | DOES_POP)) == DOES_POP) {
        __u32 *word = data;

        /* From behind, as the places overlap. */
        word[3] = word[2];
        word[2] = word[1];
        word[1] = word[0];
        bpf_xdp_adjust_head(frame, 4);
    }
    return 1;
}
