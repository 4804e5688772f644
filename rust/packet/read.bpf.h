// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Reading: whose packet it is. Nothing of it is changed here.
#pragma once

#include "layout.bpf.h"

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
