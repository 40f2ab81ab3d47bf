/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A frame's key, as the daemon's `packet::extract` sees it, bit for bit, in the fields that `struct key` has; or none, for frames
 * that are rare or costly to read here: shorter than an Ethernet header, IEEE 802.3 lengths, a VLAN tag cut off, IPv4 options, IPv6
 * extension headers, and headers that do not stand in the frame's first buffer.
 */
#pragma once

#include "tables.h"

#define ETH_IPV4 0x0800
#define ETH_ARP 0x0806
#define ETH_RARP 0x8035
#define ETH_VLAN 0x8100
#define ETH_QINQ 0x88a8
#define ETH_IPV6 0x86dd

#define IP_ICMP 1
#define IP_TCP 6
#define IP_UDP 17
#define IP_DCCP 33
#define IP_ICMP6 58
#define IP_SCTP 132
#define IP_UDPLITE 136

#define FRAG_FIRST 1
#define FRAG_LATER 3

enum network { NETWORK_OTHER, NETWORK_IPV4, NETWORK_IPV6 };

INLINE __u16 load16(const void *at)
{
    return be16(*(const __u16 *)at);
}

INLINE __u32 load32(const void *at)
{
    return be32(*(const __u32 *)at);
}

INLINE __u64 load48(const void *at)
{
    return (__u64)load16(at) << 32 | load32(at + 2);
}

INLINE __u64 load64(const void *at)
{
    return (__u64)load32(at) << 32 | load32(at + 4);
}

INLINE int is_vlan(__u16 type)
{
    return type == ETH_VLAN || type == ETH_QINQ;
}

/* Hop-by-hop, routing, fragment, authentication, destination options. */
INLINE int is_extension(__u8 proto)
{
    return proto == 0 || proto == 43 || proto == 44 || proto == 51 || proto == 60;
}

/* What IP carries: `left` bytes that stand at `at`. 0: not to be read here. */
INLINE int transport(const void *at, const void *end, __u32 left, struct key *key, struct layers *layers)
{
    __u8 proto = layers->proto;
    __u32 least = proto == IP_TCP ? 20 : proto == IP_UDP || proto == IP_ICMP ? 8 : proto == IP_SCTP ? 12 : 4;

    if (proto == IP_ICMP ? layers->network != NETWORK_IPV4
                         : proto == IP_ICMP6 ? layers->network != NETWORK_IPV6
                                             : proto != IP_TCP && proto != IP_UDP && proto != IP_SCTP)
        return 1;
    if (left < least)
        return 1;
    if (proto == IP_TCP) {
        if (at + 20 > end)
            return 0;
        key->word[8] |= load32(at);
        key->word[2] |= load16(at + 12) & 0x0fff;
        layers->transport = 1;
        return 1;
    }
    if (at + 4 > end)
        return 0;
    if (proto == IP_ICMP || proto == IP_ICMP6) {
        key->word[8] |= (__u32) * (const __u8 *)at << 16 | *(const __u8 *)(at + 1);
    } else {
        key->word[8] |= load32(at);
        layers->transport = proto == IP_UDP;
    }
    return 1;
}

INLINE int ipv4(const void *at, const void *end, __u32 len, struct key *key, struct layers *layers)
{
    __u32 left = len - layers->network_at, total, offset;
    __u8 first;

    if (left < 20)
        return 1;
    if (at + 20 > end)
        return 0;
    first = *(const __u8 *)at;
    total = load16(at + 2);
    /* Malformed: no IP fields. A frame left to be segmented may say 0, but none is seen here. */
    if (first >> 4 != 4 || (first & 15) < 5 || total < (first & 15) * 4 || total > left)
        return total != 0;
    if (first != 0x45)
        return 0;
    offset = load16(at + 6);
    layers->frag = offset & 0x1fff ? FRAG_LATER : offset & 0x2000 ? FRAG_FIRST : 0;
    layers->network = NETWORK_IPV4;
    layers->proto = *(const __u8 *)(at + 9);
    layers->transport_at = layers->network_at + 20;
    layers->end = layers->network_at + total;
    key->word[4] = load64(at + 12);
    key->word[8] = (__u64)layers->proto << 56 | (__u64) * (const __u8 *)(at + 1) << 48 |
                   (__u64) * (const __u8 *)(at + 8) << 40 | (__u64)layers->frag << 32;
    return layers->frag == FRAG_LATER || transport(at + 20, end, total - 20, key, layers);
}

INLINE int ipv6(const void *at, const void *end, __u32 len, struct key *key, struct layers *layers)
{
    __u32 left = len - layers->network_at, first, payload;

    if (left < 40)
        return 1;
    if (at + 40 > end)
        return 0;
    first = load32(at);
    payload = load16(at + 4);
    if (first >> 28 != 6 || payload > left - 40)
        return 1;
    layers->proto = *(const __u8 *)(at + 6);
    if (is_extension(layers->proto) || payload == 0)
        return 0;
    layers->network = NETWORK_IPV6;
    layers->transport_at = layers->network_at + 40;
    layers->end = layers->transport_at + payload;
    key->word[4] = load64(at + 8);
    key->word[5] = load64(at + 16);
    key->word[6] = load64(at + 24);
    key->word[7] = load64(at + 32);
    key->word[8] =
        (__u64)layers->proto << 56 | (__u64)(__u8)(first >> 20) << 48 | (__u64) * (const __u8 *)(at + 7) << 40;
    return transport(at + 40, end, payload, key, layers);
}

/* ARP's operation and IP addresses. */
INLINE int arp(const void *at, const void *end, __u32 len, struct key *key, struct layers *layers)
{
    __u64 head;

    if (len - layers->network_at < 28)
        return 1;
    if (at + 28 > end)
        return 0;
    head = load64(at);
    if (head >> 16 != 0x000108000604)
        return 1;
    key->word[4] = (__u64)load32(at + 14) << 32 | load32(at + 24);
    key->word[8] = (head & 0xffff) <= 0xff ? head << 56 : 0;
    return 1;
}

/* Fills `key`, all but its port, and `layers`, both zero before. 0: the frame is not to be read here. */
INLINE int parse(struct xdp_md *frame, __u32 len, struct key *key, struct layers *layers)
{
    const void *data = (void *)(long)frame->data, *end = (void *)(long)frame->data_end, *at = data + 14;
    __u16 type;

    if (at > end)
        return 0;
    type = load16(data + 12);
    key->word[2] = load48(data + 6) << 16;
    if (is_vlan(type)) {
        if (at + 4 > end)
            return 0;
        key->word[3] = (__u64)type << 48 | (__u64)(load16(at) | 0x1000) << 32;
        type = load16(at + 2);
        at += 4;
        layers->tags = 1;
        if (is_vlan(type)) {
            if (at + 4 > end)
                return 0;
            key->word[3] |= (__u64)type << 16 | (load16(at) | 0x1000);
            type = load16(at + 2);
            at += 4;
            layers->tags = 2;
        }
    }
    if (type < 0x600)
        return 0;
    key->word[1] = load48(data) << 16 | type;
    layers->network_at = 14 + 4 * layers->tags;
    switch (type) {
    case ETH_IPV4:
        return ipv4(at, end, len, key, layers);
    case ETH_IPV6:
        return ipv6(at, end, len, key, layers);
    case ETH_ARP:
    case ETH_RARP:
        return arp(at, end, len, key, layers);
    }
    return 1;
}
