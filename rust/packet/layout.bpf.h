// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// What the programs see: what the kernel gives, what lies in the maps, what packets begin with. Maps are made by
// src/loader.rs, which finds them by these names; the structs are src/layout.rs, and "layout" below lets it compare.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define NET16(x) ((u16)__builtin_bswap16((u16)(x)))
#define NET32(x) ((u32)__builtin_bswap32((u32)(x)))
#define LIKELY(x) __builtin_expect(!!(x), 1)
// The compiler must use this very pointer: the verifier does not see that another way to compute it gives the
// same, and forgets what was checked.
#define PIN(pointer) __asm__ volatile("" : "+r"(pointer))

// What the kernel gives (linux/bpf.h). Numbers of helpers are ABI.
struct xdp_md { u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex; };
struct __sk_buff { u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto,
    priority, ingress_ifindex, ifindex; };
struct bpf_sock { u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4], src_port;
    u16 dst_port, pad; u32 dst_ip4, dst_ip6[4], state; };
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*skb_store_bytes)(struct __sk_buff *, u32 at, const void *from, u32 length, u64 flags) = (void *)9;
static long (*redirect)(u32 interface, u64 flags) = (void *)23;
static long (*skb_load_bytes)(struct __sk_buff *, u32 at, void *to, u32 length) = (void *)26;
static long (*xdp_adjust_head)(struct xdp_md *, int delta) = (void *)44;
static long (*skb_adjust_room)(struct __sk_buff *, int length, u32 mode, u64 flags) = (void *)50;
static long (*sk_release)(void *socket) = (void *)86;
static struct bpf_sock *(*skc_lookup_tcp)(void *, void *tuple, u32 size, u64 netns, u64 flags) = (void *)99;
static long (*tcp_check_syncookie)(void *socket, void *ip, u32, void *tcp, u32) = (void *)100;
enum { XDP_DROP = 1, XDP_PASS = 2, XDP_TX = 3, TCX_NEXT = -1, TCX_DROP = 2, TCP_LISTEN = 10 };
enum { ROOM_MAC = 1, ROOM_V4 = 1 << 1, ROOM_V6 = 1 << 2 };

// Maps and what is in them.
extern struct settings settings;     // read as memory: its place is known when the program is loaded
extern u64 services, tables, backends, trusted, counters, of_services, of_backends;

enum { WIDTH = 6, ID = 1023, MOST_HOPS = 10, ENOUGH = 1024 };
enum { MOST_SERVICES = 256, MOST_INTERFACES = 64, TRIES = 4, NEAR_BITS = 10 };
struct mac { u16 part[3]; };
struct interface { u32 index; struct mac mac; u16 zero; };
// A look-up in a hash map is a call, which costs as much as all the rest. So most services are in the settings
// once more, where it takes a comparison: each at the one place for it, unless another was there first.
struct near { u64 address[2]; u32 rest, number_and_1, mtu, zero; };      // 0: nothing is here
struct settings {
    u64 key[4];                     // SipHash's state after the key
    u32 size, me;                   // slots of tables; which backend an agent is
    u32 live[MOST_SERVICES];        // which of a service's two tables; one store swaps them
    struct interface interfaces[MOST_INTERFACES];   // at its index's end, or one of the places behind that
    struct near near[1 << NEAR_BITS];
};
struct service_key { u8 address[16]; u16 port; u8 protocol, zero; };    // port and protocol 0: the address
struct service { u32 number, mtu; };
enum { KNOWN = 1, ENCAPSULATE = 2, OUTER_V6 = 4 };
struct hop {
    struct mac mac, from;           // of the next hop, and of the interface towards it
    u32 interface, flags;
    u32 address[4], source[4];      // outer header
    u32 spread, zero;               // bits of the outer source's last word that vary with the flow
};
struct backend { u32 live, zero; struct hop hops[2]; };  // the two take turns; one store of `live` swaps them
struct counts { u64 packets, bytes, flows, others; };    // others: second hops to a backend, ICMP errors of a service

// The order is that of REASONS in src/layout.rs.
enum reason {
    FORWARDED, FORWARDED_ERROR, SECOND_HOP, DELIVERED, DELIVERED_UDP, DELIVERED_UNCLAIMED, NOT_OURS,
    FRAGMENT, EXTENSION, MALFORMED, NO_BACKEND, UNRESOLVED, TOO_BIG, HOPS, ROOM, TTL, LOOP, CONGESTION,
    STRANGER, REASONS,
};

SECTION(".layout") const u32 layout[] = {
    sizeof(struct settings), sizeof(struct interface), sizeof(struct service_key), sizeof(struct service),
    sizeof(struct backend), sizeof(struct counts), sizeof(struct counts), REASONS,
};

// Headers.
struct ethernet { struct mac to, from; u16 type; };
struct ipv4 { u8 head, tos; u16 length, id, fragment; u8 ttl, protocol; u16 checksum; u32 source, destination; };
struct ipv6 { u32 flow; u16 length; u8 next, hops; u32 source[4], destination[4]; };
enum { IPV4 = 0x0008, IPV6 = 0xdd86, VLAN = 0x0081, QINQ = 0xa888 };     // as they lie in memory
enum { ICMP = 1, IPIP = 4, TCP = 6, UDP = 17, IP6 = 41, FRAGMENTED = 44, ICMP6 = 58 };

// What is known of a packet.
struct flow {
    struct service_key key;
    u64 client[2];
    u16 port;
    u8 v6, opening, error, hops, tcp, tos, ttl;
    u32 ip, length, bytes;          // offset of the IP header that counts, its packet's length, the frame's
};
// And of its outer header; `bits` and on: key of `trusted`.
struct outside { u32 length, ecn, zero, bits; u64 source[2]; };
