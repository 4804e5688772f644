// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The packet room in the kernel: three programs that share their maps.
//
//   director  XDP at a balancer: what comes for a service goes on to the backend that the table names.
//   agent     XDP at a backend: takes the outer header off; what no socket here wants goes on to the
//             backend that had the flow before (the second hop).
//   probe     tcx egress at a balancer: health checks, told by their mark, take the way of packets.
//
// None keeps state: what becomes of a packet follows from the packet and the maps. The rules for what is
// odd (fragments, options, lengths, ICMP) are in docs/architecture.md, "The way of a packet", and once more
// in tests/model/packet.py. Addresses are 16 bytes everywhere, IPv4 as ::ffff:a.b.c.d.
//
// Offered under the GPL too because the kernel lends bpf_tcp_check_syncookie to such programs only.
//
// Compiled by `make bpf`; the object is committed beside this file. Maps are made by src/loader.rs, which
// finds them by these names; the structs are src/layout.rs, and "layout" below lets it compare.

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
#ifdef SOURCE
SECTION(".source") const char source[] = SOURCE;          // SHA-256 of this file
#endif

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

// A verdict, and why; below 0 it is the reason for a drop.
INLINE int counted(u32 reason, int verdict) {
    if (verdict < 0) reason = -verdict, verdict = XDP_DROP;
    u64 *counter = map_lookup(&counters, &reason);
    if (counter) *counter += 1;
    return verdict;
}

INLINE void count(void *map, u32 key, const struct flow *flow, u32 others) {
    struct counts *counts = map_lookup(map, &key);
    if (!counts) return;
    counts->packets += 1;
    counts->bytes += flow->bytes;
    counts->flows += flow->opening;
    counts->others += others;
}

INLINE u64 rotated(u64 word, int bits) { return word << bits | word >> (64 - bits); }

#define ROUND                                                                                        \
    do {                                                                                             \
        a += b; b = rotated(b, 13) ^ a; a = rotated(a, 32); c += d; d = rotated(d, 16) ^ c;          \
        a += d; d = rotated(d, 21) ^ a; c += b; b = rotated(b, 17) ^ c; c = rotated(c, 32);          \
    } while (0)
#define BLOCK(word) do { u64 block = (word); d ^= block; ROUND; a ^= block; } while (0)

// SipHash-1-3 of the client's address and port, the bytes of rust/core/src/flow.rs.
INLINE u64 hash(const struct flow *flow) {
    u64 a = settings.key[0], b = settings.key[1], c = settings.key[2], d = settings.key[3];
    u64 port = flow->port;
    if (flow->client[0] == 0 && (u32)flow->client[1] == 0xffff0000) {
        BLOCK(flow->client[1] >> 32 | port << 32 | 6ULL << 56);
    } else {
        BLOCK(flow->client[0]);
        BLOCK(flow->client[1]);
        BLOCK(port | 18ULL << 56);
    }
    c ^= 0xff;
    ROUND; ROUND; ROUND;
    return a ^ b ^ c ^ d;
}

// Addresses of flows are written in words of 8 bytes because they are read so: a load waits for a store that
// has only a part of it.
INLINE void set_v4(void *address, u32 from) {
    u64 *to = address;
    to[0] = 0; to[1] = 0xffff0000 | (u64)from << 32;
}

INLINE void keep_v6(void *address, const u32 *from) {
    u64 *to = address;
    to[0] = from[0] | (u64)from[1] << 32; to[1] = from[2] | (u64)from[3] << 32;
}

INLINE void set_v6(void *address, const u32 *from) {
    for (int i = 0; i < 4; i++) ((u32 *)address)[i] = from[i];
}

INLINE int same_v6(const u32 *one, const u32 *other) {
    return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3];
}

// Where a v4 address lies in maps, no v6 packet may be from or for: what is IPv4's is IPv4's.
INLINE int mapped(const u32 *address) { return address[0] == 0 && address[1] == 0 && address[2] == 0xffff0000; }

// A packet that cannot be read is our business if it is for an address of ours; the reason says so.
INLINE int if_ours(const struct flow *flow, int reason) {
    struct service_key key = flow->key;
    key.port = 0; key.protocol = 0;
    return map_lookup(&services, &key) ? reason : NOT_OURS;
}

// An ICMP error belongs to the flow of the packet in it, of which 8 bytes behind the IP header are certain.
INLINE int read_error(u8 *end, u8 *inner, u32 length, int v6, struct flow *flow) {
    u8 *ports;
    PIN(inner);
    if (v6) {
        struct ipv6 *ip = (void *)inner;
        if (length < 48 || (u8 *)(ip + 1) > end) return if_ours(flow, MALFORMED);
        if (ip->next == FRAGMENTED) return if_ours(flow, FRAGMENT);
        if (!same_v6(ip->source, (u32 *)flow->key.address)) return NOT_OURS;
        flow->key.protocol = ip->next;
        keep_v6(flow->client, ip->destination);
        ports = inner + 40;
    } else {
        struct ipv4 *ip = (void *)inner;
        if (length < 28 || (u8 *)(ip + 1) > end) return if_ours(flow, MALFORMED);
        u32 head = (ip->head & 15) * 4;
        if (ip->head >> 4 != 4 || head < 20 || length < head + 8) return if_ours(flow, MALFORMED);
        if (ip->fragment & NET16(0x1fff)) return if_ours(flow, FRAGMENT);
        if (ip->source != ((u32 *)flow->key.address)[3]) return NOT_OURS;
        flow->key.protocol = ip->protocol;
        set_v4(flow->client, ip->destination);
        ports = inner + head;
    }
    if (flow->key.protocol != TCP && flow->key.protocol != UDP) return NOT_OURS;
    PIN(ports);
    if (ports + 8 > end) return if_ours(flow, MALFORMED);
    flow->key.port = *(u16 *)ports;
    flow->port = *(u16 *)(ports + 2);
    flow->tcp = flow->key.protocol == TCP;
    flow->error = 1;
    return FORWARDED;
}

// Behind the IP header: whose flow it is. `rest` is what the IP header says there is.
INLINE int read_transport(u8 *end, u8 *at, u32 rest, u8 protocol, struct flow *flow) {
    PIN(at);
    if (rest < 8 || at + 8 > end) return if_ours(flow, MALFORMED);
    if (protocol == TCP) {
        if (rest < 20 || at + 20 > end) return if_ours(flow, MALFORMED);
        flow->tcp = 1;
        flow->opening = (at[13] & 0x12) == 0x02;
    } else if (protocol == ICMP) {
        if (at[0] != 3 && at[0] != 11 && at[0] != 12) return NOT_OURS;
        return read_error(end, at + 8, rest - 8, 0, flow);
    } else if (protocol == ICMP6) {
        if (at[0] < 1 || at[0] > 4) return NOT_OURS;
        return read_error(end, at + 8, rest - 8, 1, flow);
    }
    flow->port = *(u16 *)at;
    flow->key.port = *(u16 *)(at + 2);
    flow->key.protocol = protocol;
    return FORWARDED;
}

INLINE int read_v4(u8 *data, u8 *end, u32 at, struct flow *flow) {
    struct ipv4 *ip = (void *)(data + at);
    if ((u8 *)(ip + 1) > end) return NOT_OURS;
    u32 head = (ip->head & 15) * 4, length = NET16(ip->length);
    if (ip->head >> 4 != 4 || head < 20) return NOT_OURS;
    if (ip->protocol != TCP && ip->protocol != UDP && ip->protocol != ICMP) return NOT_OURS;
    set_v4(flow->key.address, ip->destination);
    set_v4(flow->client, ip->source);
    flow->ip = at; flow->length = length;
    flow->v6 = 0; flow->tos = ip->tos; flow->ttl = ip->ttl;
    if (ip->fragment & NET16(0x3fff)) return if_ours(flow, FRAGMENT);
    if (length < head || data + at + length > end) return if_ours(flow, MALFORMED);
    return read_transport(end, data + at + head, length - head, ip->protocol, flow);
}

INLINE int read_v6(u8 *data, u8 *end, u32 at, struct flow *flow) {
    struct ipv6 *ip = (void *)(data + at);
    if ((u8 *)(ip + 1) > end || (ip->flow & 0xf0) != 0x60) return NOT_OURS;
    u32 rest = NET16(ip->length);
    if (mapped(ip->destination)) return NOT_OURS;
    keep_v6(flow->key.address, ip->destination);
    keep_v6(flow->client, ip->source);
    flow->ip = at; flow->length = rest + 40;
    flow->v6 = 1; flow->tos = NET32(ip->flow) >> 20; flow->ttl = ip->hops;
    switch (ip->next) {
    case TCP: case UDP: case ICMP6: break;
    case FRAGMENTED: return if_ours(flow, FRAGMENT);
    case 0: case 43: case 51: case 60: return if_ours(flow, EXTENSION);
    default: return NOT_OURS;
    }
    if (data + at + 40 + rest > end) return if_ours(flow, MALFORMED);
    return read_transport(end, data + at + 40, rest, ip->next, flow);
}

INLINE int read_ip(u8 *data, u8 *end, u32 at, u16 type, struct flow *flow) {
    return type == IPV4 ? read_v4(data, end, at, flow) : type == IPV6 ? read_v6(data, end, at, flow) : NOT_OURS;
}

// Whether a MAC is that of the interface. XDP runs before the kernel's MAC filter, so a frame that a switch has
// flooded would otherwise be forwarded twice.
INLINE int is_ours(u32 index, const struct mac *to) {
    for (u32 try = 0; try < TRIES; try++) {
        const struct interface *one = &settings.interfaces[(index + try) & (MOST_INTERFACES - 1)];
        if (one->index == index)
            return *(u32 *)to->part == *(u32 *)one->mac.part && to->part[2] == one->mac.part[2];
    }
    return 0;
}

// Ethernet with up to two tags, to our own MAC: offset of the IP header, or 0.
INLINE u32 read_ethernet(struct xdp_md *ctx, u8 *data, u8 *end, u16 *type, struct flow *flow) {
    struct ethernet *frame = (void *)data;
    if ((u8 *)(frame + 1) > end) return 0;
    if (!is_ours(ctx->ingress_ifindex, &frame->to)) return 0;
    // Another balancer of ours says in its source address how far the packet has come, see mark_hops().
    if (frame->from.part[0] == NET16(0x0270) && (frame->from.part[1] & 0xf0) == 0x60)
        flow->hops = frame->from.part[1] & 0x0f;
    flow->bytes = end - data;
    *type = frame->type;
    u32 at = 14;
    for (int tags = 0; tags < 2; tags++) {
        if (*type != VLAN && *type != QINQ) break;
        if (data + at + 4 > end) return 0;
        *type = *(u16 *)(data + at + 2);
        at += 4;
    }
    return at;
}

// The service that a packet is for; 0 if there is none.
INLINE int find_service(struct flow *flow, struct service *found) {
    u64 *address = (void *)flow->key.address;
    u32 rest = flow->key.port | (u32)flow->key.protocol << 16;
    u64 mixed = address[0] ^ address[1] ^ rest;
    u32 home = ((u32)mixed ^ (u32)(mixed >> 32)) * 0x9e3779b1 >> (32 - NEAR_BITS);
    struct near *near = &settings.near[home & ((1 << NEAR_BITS) - 1)];
    if (near->address[0] == address[0] && near->address[1] == address[1] && near->rest == rest && near->number_and_1) {
        *found = (struct service){near->number_and_1 - 1, near->mtu};
        return 1;
    }
    struct service *service = map_lookup(&services, &flow->key);
    if (service) *found = *service;
    return service != 0;
}

// The row of a flow: six backend ids of 10 bits, the owner first. One load, so it is of one table.
INLINE u64 row(u32 number, u64 hashed) {
    u32 place = number * 2 + (settings.live[number & (MOST_SERVICES - 1)] & 1);
    void *table = map_lookup(&tables, &place);
    if (!table) return 0;
    u32 slot = (hashed >> 32) * settings.size >> 32;
    u64 *entry = map_lookup(table, &slot);
    return entry ? *entry : 0;
}

// Of a checksum, from the sum of its words.
INLINE u16 checksum(u64 sum) {
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~(sum + (sum >> 16));
}

// A checksum after one of its words has changed (RFC 1624).
INLINE u16 mended(u16 sum, u16 was, u16 is) { return checksum((u64)(u16)~sum + (u16)~was + is); }

// The outer header, and its type for the frame. In words that are whole in registers: what was written in parts
// is slow to read again. It has the TOS of the inner one (RFC 6040, 2983), and the hop count where routers leave it
// alone: in the identification, which means nothing in a packet that must not be fragmented (RFC 6864), or in the
// flow label's end.
INLINE u16 write_outer(u32 *ip, const struct hop *hop, u32 length, int v6, u32 tos, u32 hashed, u32 hops) {
    u32 inner = v6 ? IP6 : IPIP, varied = hashed & hop->spread, to = hop->address[3];
    if (hop->flags & OUTER_V6) {
        ip[0] = NET32(0x60000000 | tos << 20 | (hashed & 0xffff) << 4 | hops);
        ip[1] = NET16(length) | inner << 16 | 64 << 24;
        set_v6(ip + 2, hop->source);
        ip[5] |= varied;
        set_v6(ip + 6, hop->address);
        return IPV6;
    }
    u32 first = 0x45 | tos << 8 | (u32)NET16(length + 20) << 16, second = NET16(0x7060 | hops) | 0x0040 << 16;
    u32 third = 64 | inner << 8, source = hop->source[3] | varied;
    third |= (u32)checksum((u64)first + second + third + source + to) << 16;
    ip[0] = first; ip[1] = second; ip[2] = third; ip[3] = source; ip[4] = to;
    return IPV4;
}

// Without an outer header the source MAC has the count: 02:70:6h and the end of our own.
INLINE void mark_hops(struct mac *from, u32 hops) {
    if (!hops) return;
    from->part[0] = NET16(0x0270);
    from->part[1] = (from->part[1] & 0xff00) | 0x60 | hops;
}

// Whoever sends a packet on is a hop on its way: so none goes round for ever.
INLINE int take_hop(struct xdp_md *ctx, const struct flow *flow) {
    struct ipv4 *ip = (void *)((u8 *)(long)ctx->data + (flow->ip & 127));
    PIN(ip);
    if ((u8 *)(ip + 1) > (u8 *)(long)ctx->data_end) return -MALFORMED;
    if (flow->v6) {
        ((struct ipv6 *)ip)->hops = flow->ttl - 1;
    } else {
        u32 sum = ip->checksum + 1;     // RFC 1624, for one less
        ip->checksum = sum + (sum >= 0xffff);
        ip->ttl = flow->ttl - 1;
    }
    return 0;
}

// Take off what is before the IP header that counts, but an Ethernet header.
INLINE long strip(struct xdp_md *ctx, struct flow *flow) {
    u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (data + 14 > end) return -1;
    struct ethernet kept = *(struct ethernet *)data;
    kept.type = flow->v6 ? IPV6 : IPV4;
    if (xdp_adjust_head(ctx, (int)(flow->ip & 127) - 14)) return -1;
    data = (void *)(long)ctx->data; end = (void *)(long)ctx->data_end;
    if (data + 14 > end) return -1;
    *(struct ethernet *)data = kept;
    flow->ip = 14;
    return 0;
}

// Send it to a backend. An outer header replaces all that is before the IP header, tags too; without
// one the tags stay, for the backend is in the same network.
INLINE int forward(struct xdp_md *ctx, struct flow *flow, u32 id, u32 mtu, u32 hashed, u32 hops, u32 wrapped) {
    struct backend *backend = map_lookup(&backends, &id);
    if (!backend) return -NO_BACKEND;
    struct hop *hop = &backend->hops[backend->live & 1];
    if (!(hop->flags & KNOWN)) return -NO_BACKEND;
    if (!hop->interface) return -UNRESOLVED;
    if (flow->ttl <= 1) return -TTL;
    u32 outer = hop->flags & OUTER_V6 ? 40 : 20;
    if (hop->flags & ENCAPSULATE && flow->length + outer > mtu) return -TOO_BIG;
    if (take_hop(ctx, flow)) return -MALFORMED;
    if (hop->flags & ENCAPSULATE) {
        if (xdp_adjust_head(ctx, (int)(flow->ip & 127) - 14 - (int)outer)) return -ROOM;
    } else if (wrapped && strip(ctx, flow)) {
        return -ROOM;
    }
    u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct ethernet *frame = (void *)data;
    if ((u8 *)(frame + 1) > end) return -ROOM;
    // Both at once.
    for (int word = 0; word < 3; word++) ((u32 *)frame)[word] = ((u32 *)hop)[word];
    if (hop->flags & ENCAPSULATE) {
        u32 *ip = (u32 *)(data + 14);
        if ((u8 *)(ip + 10) > end) return -ROOM;
        frame->type = write_outer(ip, hop, flow->length, flow->v6, flow->tos, hashed, hops);
    } else {
        mark_hops(&frame->from, hops);
    }
    count(&of_backends, id, flow, hops > 0);
    return hop->interface == ctx->ingress_ifindex ? XDP_TX : (int)redirect(hop->interface, 0);
}

SECTION("xdp/director") int director(struct xdp_md *ctx) {
    u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct flow flow = {};
    struct service service; u16 type;
    u32 at = read_ethernet(ctx, data, end, &type, &flow);
    int reason = at ? read_ip(data, end, at, type, &flow) : NOT_OURS;
    if (reason == FORWARDED && !find_service(&flow, &service)) reason = NOT_OURS;
    if (reason != FORWARDED) return counted(reason, reason == NOT_OURS ? XDP_PASS : XDP_DROP);
    count(&of_services, service.number, &flow, flow.error);
    u64 hashed = hash(&flow), entry = row(service.number, hashed);
    u32 id = entry & ID;
    // Nobody takes new flows, perhaps, but somebody may have old ones.
    if (!id && !flow.opening) id = entry >> 10 & ID;
    // What a backend has sent on is for another backend: somebody takes a director for one.
    int verdict = flow.hops ? -LOOP : id ? forward(ctx, &flow, id, service.mtu, hashed, 0, 0) : -NO_BACKEND;
    return counted(flow.error ? FORWARDED_ERROR : FORWARDED, verdict);
}

// Whether this host knows the connection: a socket that does not listen, or an acknowledgement of a
// cookie that a listener has given out instead of keeping state.
INLINE int known(struct xdp_md *ctx, struct flow *flow) {
    u32 tuple[9], ports = flow->port | (u32)flow->key.port << 16;
    if (flow->v6) {
        set_v6(tuple, (u32 *)flow->client);
        set_v6(tuple + 4, (u32 *)flow->key.address);
        tuple[8] = ports;
    } else {
        tuple[0] = flow->client[1] >> 32;
        tuple[1] = ((u32 *)flow->key.address)[3];
        tuple[2] = ports;
    }
    struct bpf_sock *socket = skc_lookup_tcp(ctx, tuple, flow->v6 ? 36 : 12, -1, 0);
    if (!socket) return 0;
    int found = socket->state != TCP_LISTEN;
    if (!found && !flow->error) {
        u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
        u8 *ip = data + (flow->ip & 127);
        if (flow->v6) {
            if (ip + 60 <= end) found = tcp_check_syncookie(socket, ip, 40, ip + 40, 20) == 0;
        } else if (ip + 20 <= end) {
            u8 *tcp = ip + (ip[0] & 15) * 4;
            if (tcp + 20 <= end) found = tcp_check_syncookie(socket, ip, 20, tcp, 20) == 0;
        }
    }
    sk_release(socket);
    return found;
}

// 1 for 0, else 0, of what is below 1 << 31. Without a jump: the verifier would follow each way through all that
// comes after, and the ways of two loops over a row are more than it bears.
INLINE u32 is_zero(u32 value) { PIN(value); return (value - 1) >> 31; }

// Who may have a connection that `me` has not: the one behind `me` in the row, and round; as rows differ and a packet
// may come back, after some hops the one further on. Without hops it is from a director that takes `me` for the owner:
// if the row names another, that one. 0: there is nobody else; ENOUGH: they have been asked.
INLINE u32 next_of(u64 entry, u32 me, u32 hops) {
    u32 others = 0, begin = 1, period = 6, owner = entry & ID;
    for (u32 place = 0; place < WIDTH; place++) {
        u32 id = entry >> (10 * place) & ID, mine = is_zero(id ^ me);
        begin += mine * place;
        period -= mine * (place ? 2 : 4);
        others += 1 ^ (mine | is_zero(id));
    }
    if (hops + 1 >= 4 * others || hops >= MOST_HOPS) return others ? ENOUGH : 0;
    if (!hops && owner && owner != me) return owner;
    u32 skip = hops / period % others, found = 0;
    for (u32 step = 0, seen = 0; step < WIDTH; step++) {
        u32 id = entry >> (10 * ((begin + step) % WIDTH)) & ID, other = 1 ^ (is_zero(id ^ me) | is_zero(id));
        found += id * (other & is_zero(seen ^ skip));
        seen += other;
    }
    return found;
}

// To the stack, without what the director has put around it.
INLINE int deliver(struct xdp_md *ctx, struct flow *flow, u32 wrapped, int reason) {
    return counted(reason, wrapped && strip(ctx, flow) ? -ROOM : XDP_PASS);
}

// The outer header, if there is one; 0 if it is for somebody else than this host.
INLINE int read_outside(u8 *data, u8 *end, u32 at, u32 me, u16 *type, struct flow *flow, struct outside *outer) {
    struct ipv4 *v4 = (void *)(data + at);
    struct ipv6 *v6 = (void *)(data + at);
    if ((u8 *)(v4 + 1) > end) return 0;
    u8 inner = *type == IPV6 ? v6->next : *type == IPV4 && v4->head == 0x45 ? v4->protocol : 0;
    if (inner != IPIP && inner != IP6) return 1;
    struct backend *mine = map_lookup(&backends, &me);
    if (!mine) return 0;
    struct hop *hop = &mine->hops[mine->live & 1];
    if (!(hop->flags & OUTER_V6) != (*type == IPV4)) return 0;
    if (*type == IPV4) {
        if (v4->fragment & NET16(0x3fff) || hop->address[3] != v4->destination) return 0;
        u16 id = NET16(v4->id);
        flow->hops = (id & 0xfff0) == 0x7060 ? id & 15 : 0;
        *outer = (struct outside){.length = 20, .ecn = v4->tos & 3, .bits = 128};
        set_v4(outer->source, v4->source);
    } else {
        if ((u8 *)(v6 + 1) > end || mapped(v6->source) || !same_v6(hop->address, v6->destination)) return 0;
        flow->hops = NET32(v6->flow) & 15;
        *outer = (struct outside){.length = 40, .ecn = NET32(v6->flow) >> 20 & 3, .bits = 128};
        keep_v6(outer->source, v6->source);
    }
    *type = inner == IPIP ? IPV4 : IPV6;
    return 1;
}

// Whether a packet may come out of its outer header: from whom that is, and a mark of congestion, which goes on
// inside (RFC 6040, 4.2) or, where the sender knows none, is told by the loss. FORWARDED, or why not.
INLINE int accept(u8 *data, u8 *end, struct flow *flow, const struct outside *outer) {
    if (!map_lookup(&trusted, &outer->bits)) return STRANGER;
    if (!flow->ttl) return TTL;
    u32 inside = flow->tos & 3, mark = outer->ecn == 3 || (outer->ecn == 1 && inside == 2) ? outer->ecn : inside;
    if (mark == inside) return FORWARDED;
    u16 *words = (void *)(data + (flow->ip & 127));
    PIN(words);
    if (!inside || (u8 *)(words + 10) > end) return CONGESTION;
    u16 was = words[0], is = was ^ (inside ^ mark) << (flow->v6 ? 12 : 8);
    words[0] = is;
    if (!flow->v6) words[5] = mended(words[5], was, is);
    flow->tos ^= inside ^ mark;
    return FORWARDED;
}

SECTION("xdp/agent") int agent(struct xdp_md *ctx) {
    u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct flow flow = {};
    struct service service; struct outside outer = {}; u16 type;
    u32 at = read_ethernet(ctx, data, end, &type, &flow), me = settings.me;
    // What the director would not have sent is the stack's, as if there were no agent.
    if (!at || !read_outside(data, end, at, me, &type, &flow, &outer) ||
        read_ip(data, end, at + outer.length, type, &flow) != FORWARDED || !find_service(&flow, &service))
        return counted(NOT_OURS, XDP_PASS);
    u32 wrapped = outer.length, refused = wrapped ? accept(data, end, &flow, &outer) : FORWARDED;
    count(&of_services, service.number, &flow, flow.error);
    if (refused != FORWARDED) return counted(refused, XDP_DROP);
    if (!flow.tcp) return deliver(ctx, &flow, wrapped, DELIVERED_UDP);
    if (flow.opening || known(ctx, &flow)) return deliver(ctx, &flow, wrapped, DELIVERED);
    u64 hashed = hash(&flow);
    u32 next = next_of(row(service.number, hashed), me, flow.hops);
    if (!next || next == ENOUGH) return deliver(ctx, &flow, wrapped, next ? HOPS : DELIVERED_UNCLAIMED);
    return counted(SECOND_HOP, forward(ctx, &flow, next, service.mtu, hashed, flow.hops + 1, wrapped));
}

// Marked by the prober: 0x7062 and the backend's id. Goes to the service's address at that backend.
SECTION("tc/probe") int probe(struct __sk_buff *skb) {
    if (LIKELY(skb->mark >> 16 != 0x7062)) return TCX_NEXT;
    u32 id = skb->mark & 0xffff;
    struct backend *backend = map_lookup(&backends, &id);
    if (!backend) return TCX_NEXT;
    struct hop *hop = &backend->hops[backend->live & 1];
    if (!(hop->flags & ENCAPSULATE)) return TCX_NEXT;
    if (!hop->interface) return TCX_DROP;
    int v6 = skb->protocol == IPV6;
    if (!v6 && skb->protocol != IPV4) return TCX_NEXT;
    u32 length = skb->len - 14, outer = hop->flags & OUTER_V6 ? 40 : 20;
    u16 first;                      // version, TOS and more
    if (skb_load_bytes(skb, 14, &first, 2)) return TCX_DROP;
    u32 tos = NET16(first) >> (v6 ? 4 : 0) & 0xff;
    struct { u16 zero; struct ethernet frame; u32 ip[10]; } head = {};
    head.frame.to = hop->mac;
    head.frame.from = hop->from;
    head.frame.type = write_outer(head.ip, hop, length, v6, tos, id, 0);
    if (skb_adjust_room(skb, outer, ROOM_MAC, outer == 40 ? ROOM_V6 : ROOM_V4)) return TCX_DROP;
    if (skb_store_bytes(skb, 0, &head.frame, 14 + outer, 0)) return TCX_DROP;
    return hop->interface == skb->ifindex ? TCX_NEXT : (int)redirect(hop->interface, 0);
}
