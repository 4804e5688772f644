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
// Compiled by `make bpf`; the object is committed beside this file. What the programs see is layout.bpf.h, how a packet
// is read is read.bpf.h; here is what becomes of it.

#include "layout.bpf.h"
#include "read.bpf.h"

#ifdef SOURCE
SECTION(".source") const char source[] = SOURCE;          // SHA-256 of all files
#endif

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
