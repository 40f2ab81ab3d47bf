/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the program and the daemon share. `layout.rs` describes the same in Rust, and compares the sizes at loading.
 *
 * Who writes what: `rules`, `ports`, `sockets` and `wires` by system calls; `control` and `tables` by the daemon in memory;
 * `cpus` and `counts` by the program, each processor its own part.
 */
#pragma once

#include "helpers.h"

#define WORDS 9     /* of a key */
#define MASKS 64    /* that rules have at once */
#define PORTS 64    /* that the device serves */
#define QUEUES 64   /* of a port */
#define HINTS (1 << 18) /* remembered masks */

/*
 * Of a packet, or of a rule under its mask; the words of the daemon's key (flow/field.rs) that the program knows:
 *
 *  0  in_port(32)                         number of the mask(32), 0 in a packet's
 *  1  eth_dst(48)                         eth_type(16)
 *  2  eth_src(48)                         tcp_flags(16)
 *  3  vlan0(32)                           vlan1(32)
 *  4  ipv4_src | arp_sip | ipv6_src …     ipv4_dst | arp_tip | …
 *  5..7                                   … ipv6_src and ipv6_dst, and zero for all others
 *  8  ip_proto | arp_op, tos, ttl, frag   tp_src | icmp_type, tp_dst | icmp_code
 */
struct key {
    __u64 word[WORDS];
};

enum does {
    DOES_FULL = 1 << 0, /* handle the packet wholly; else mark it */
    DOES_DROP = 1 << 1, /* …by dropping it */
    DOES_PUSH = 1 << 2, /* a VLAN tag, `tag` */
    DOES_POP = 1 << 3,  /* the outermost VLAN tag */
    DOES_VLAN = 1 << 4, /* rewrite the outermost tag, `tag` under `tag_mask` */
    DOES_ETH = 1 << 5,  /* rewrite the Ethernet addresses */
    DOES_IPV4 = 1 << 6,
    DOES_IPV6 = 1 << 7,
    DOES_TCP = 1 << 8, /* rewrite its ports */
    DOES_UDP = 1 << 9,
    DOES_ADDRESSES = 1 << 10, /* with IPV4 or IPV6: also the addresses, which transport checksums cover */
};

/* A rewrite of words as they stand in the frame: `(old & ~mask) | value`. */
struct edit {
    __u32 value;
    __u32 mask;
};

#define ETH_WORDS 3
#define NET_WORDS 10

/* What a rule does. Replaced whole. */
struct rule {
    __u32 slot; /* of its counts */
    __u32 mark;
    __u32 does;
    __u32 out; /* slot of the port */
    __u32 tag; /* TPID and TCI, as they stand in the frame */
    __u32 tag_mask;
    struct edit tp;
    struct edit eth[ETH_WORDS];
    struct edit net[NET_WORDS]; /* of an IPv4 header the first five */
};

struct count {
    __u64 packets;
    __u64 bytes;
    __u64 used_ns; /* CLOCK_MONOTONIC */
    __u64 unused;
};

struct port {
    __u32 number;
    __u32 slot;
    __u32 generation; /* in front of a marked frame, behind its mark */
    __u32 unused;
};

struct port_counts {
    __u64 hits;
    __u64 full;
    __u64 full_bytes;
    __u64 aborted;
    __u64 misses;
    __u64 sent;
    __u64 unheard; /* for a queue without a socket, or that could not be unmarked */
    __u64 unused;
};

struct cpu {
    /* Odd while this processor is in the program. */
    __u64 turn;
    __u64 unused[7];
    __u64 mask_hits[MASKS];
    struct port_counts ports[PORTS];
};

struct control {
    __u32 current; /* table, 0 or 1 */
    __u32 fenced;  /* no packet is marked or kept */
};

/* The masks in the order in which they are tried. */
struct table {
    __u32 count;
    __u32 unused;
    __u32 number[MASKS];
    __u32 slot[MASKS]; /* in mask_hits */
    struct key mask[MASKS];
};

/* In front of a frame that goes to a socket; zeroes if it has no mark. */
struct meta {
    __u32 mark;
    __u32 generation;
};

/* Where a frame's headers stand, in bytes from its start. */
struct layers {
    __u32 tags;
    __u32 network_at;
    __u32 transport_at; /* 0 without an IP header */
    __u32 end;          /* of the IP datagram */
    __u32 network;      /* enum network */
    __u8 proto;
    __u8 frag;
    __u8 transport; /* whether TCP's or UDP's header is whole */
    __u8 unused;
};

/*
 * A processor's room to work in. A map's, not the stack's: of what stands there the verifier assumes nothing, so that it need not follow
 * each way through the headers on through each mask.
 */
struct scratch {
    struct key key;
    struct layers layers;
};

/*
 * By hash of a packet's key: the place of the mask that it was found under, plus 1. Processors write it as they like: a wrong one is tried in
 * vain, and no more.
 */
struct hints {
    __u8 place[HINTS];
};

/* How many rules there is room for. */
volatile const __u32 RULES = 1;

struct {
    uint_of(type, BPF_MAP_TYPE_HASH);
    uint_of(max_entries, 1);
    type_of(key, struct key);
    type_of(value, struct rule);
} rules SEC(".maps");

struct {
    uint_of(type, BPF_MAP_TYPE_ARRAY);
    uint_of(max_entries, 1); /* processors × rules */
    uint_of(map_flags, BPF_F_MMAPABLE);
    type_of(key, __u32);
    type_of(value, struct count);
} counts SEC(".maps");

struct {
    uint_of(type, BPF_MAP_TYPE_ARRAY);
    uint_of(max_entries, 1); /* processors */
    uint_of(map_flags, BPF_F_MMAPABLE);
    type_of(key, __u32);
    type_of(value, struct cpu);
} cpus SEC(".maps");

struct {
    uint_of(type, BPF_MAP_TYPE_ARRAY);
    uint_of(max_entries, 1);
    uint_of(map_flags, BPF_F_MMAPABLE);
    type_of(key, __u32);
    type_of(value, struct control);
} control SEC(".maps");

struct {
    uint_of(type, BPF_MAP_TYPE_ARRAY);
    uint_of(max_entries, 2);
    uint_of(map_flags, BPF_F_MMAPABLE);
    type_of(key, __u32);
    type_of(value, struct table);
} tables SEC(".maps");

struct {
    uint_of(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    uint_of(max_entries, 1);
    type_of(key, __u32);
    type_of(value, struct scratch);
} scratches SEC(".maps");

struct {
    uint_of(type, BPF_MAP_TYPE_ARRAY);
    uint_of(max_entries, 1);
    type_of(key, __u32);
    type_of(value, struct hints);
} hints SEC(".maps");

struct {
    uint_of(type, BPF_MAP_TYPE_HASH);
    uint_of(max_entries, PORTS);
    type_of(key, __u32); /* interface index */
    type_of(value, struct port);
} ports SEC(".maps");

struct {
    uint_of(type, BPF_MAP_TYPE_XSKMAP);
    uint_of(max_entries, PORTS * QUEUES);
    type_of(key, __u32);
    type_of(value, __u32);
} sockets SEC(".maps");

struct {
    uint_of(type, BPF_MAP_TYPE_DEVMAP);
    uint_of(max_entries, PORTS);
    type_of(key, __u32); /* slot of the port */
    type_of(value, __u32);
} wires SEC(".maps");
