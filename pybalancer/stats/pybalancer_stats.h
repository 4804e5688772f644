/* Statistics of a running pybalancer, in shared memory.
 *
 * One writer per slot (the worker that owns it), any number of readers, no locks: every field is
 * an aligned 64-bit counter that only grows, so a reader sees each either before or after an
 * update, never torn. Slots are multiples of 64 bytes so that two workers never share a cache
 * line. A reader checks magic, version and the slot sizes before it trusts an offset.
 *
 * File: pb_header | pb_entry[entries] | pb_worker[workers]
 *       | pb_listener[workers][entries] | pb_backend[workers][entries]
 * Offsets are in the header. An entry's index is the index of its slots in every worker.
 * Live tunnels of an entry: the sum over workers of opened - closed, or `active`, which the
 * engine itself picks by.
 */
#define PB_MAGIC 0x3153544154534250ULL /* "PBSTATS1", little-endian */
#define PB_VERSION 4
#define PB_FREE 0
#define PB_LISTENER 1
#define PB_BACKEND 2

typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t header_size;
    uint32_t entry_size;
    uint32_t worker_size;
    uint32_t listener_size;
    uint32_t backend_size;
    uint32_t workers;
    uint32_t entries;
    uint32_t pid;
    uint32_t reserved;
    uint64_t entries_offset;
    uint64_t workers_offset;
    uint64_t listeners_offset;
    uint64_t backends_offset;
    uint64_t total_size;
    uint64_t started_unix_ns;
    uint64_t generation;
    uint64_t reserved2[3];
} pb_header; /* 128 bytes */

typedef struct {
    uint32_t kind;   /* PB_FREE, PB_LISTENER, PB_BACKEND */
    uint32_t active; /* live tunnels, over all workers */
    uint64_t generation; /* plan that created the entry */
    char pool[64];    /* UTF-8, NUL-terminated; empty for a listener */
    char name[64];    /* UTF-8, NUL-terminated */
    char address[112]; /* text form, NUL-terminated */
} pb_entry; /* 256 bytes */

typedef struct {
    uint64_t wakeups;        /* returns of epoll_wait */
    uint64_t events;         /* events handled */
    uint64_t accepted;       /* connections accepted */
    uint64_t opened;         /* tunnels established */
    uint64_t closed;         /* tunnels ended */
    uint64_t bytes_copied;   /* relayed through user space */
    uint64_t bytes_spliced;  /* relayed through a pipe */
    uint64_t accept_pauses;  /* times accepting paused for want of descriptors or memory */
    uint64_t restarts;       /* times this worker was started again after a panic */
    uint64_t descriptors;    /* gauge: descriptors in use by sockets and pipes */
    uint64_t pipes;          /* gauge: pipes in use or pooled */
    uint64_t log_dropped;    /* connection records dropped because nobody read them */
    uint64_t generation;     /* gauge: plan that this worker runs */
    uint64_t waiting;        /* gauge: accepted, not yet relayed */
    uint64_t reserved[2];
} pb_worker; /* 128 bytes */

typedef struct {
    uint64_t accepted;
    uint64_t opened;
    uint64_t closed;
    uint64_t refused_full;       /* max_connections */
    uint64_t refused_source;     /* max_connections_per_source */
    uint64_t refused_rate;       /* accept_rate, and its queue full or too slow */
    uint64_t refused_proxy;      /* PROXY header missing, malformed, late, untrusted or unexpected */
    uint64_t refused_no_backend; /* no backend is up, all refused, or out of ports */
    uint64_t queued;             /* had to wait for accept_rate or handshakes */
    uint64_t bytes_in;           /* from clients */
    uint64_t bytes_out;          /* to clients */
    uint64_t requests;           /* plain HTTP requests that were routed */
    uint64_t handshakes;         /* WebSocket handshakes that were routed */
    uint64_t refused_request;    /* answered with 4xx by the balancer itself */
    uint64_t messages_in;        /* WebSocket messages of clients, counted when a tunnel ends */
    uint64_t messages_out;       /* of backends */
    uint64_t pings;              /* sent to quiet clients */
    uint64_t closes[20];         /* ended WebSockets by code: 1000 to 1015, 3xxx, 4xxx, others, none */
    uint64_t reattached;         /* times that a tunnel went on at another backend */
    uint64_t reattach_failed;    /* tunnels that should have, and were ended instead */
    uint64_t directed;           /* clients that a directory told where to connect to */
    uint64_t redirected;         /* clients that were redirected to their backend */
    uint64_t put_off;            /* clients of either that were told to come again later */
    uint64_t reserved[6];
} pb_listener; /* 384 bytes */

typedef struct {
    uint64_t connects;          /* attempts */
    uint64_t connect_failures;  /* refused, unreachable, timed out */
    uint64_t ports_exhausted;   /* attempts that found no free outgoing port */
    uint64_t opened;
    uint64_t closed;
    uint64_t resets;            /* tunnels that this backend ended with an error */
    uint64_t bytes_to_backend;
    uint64_t bytes_to_client;
    uint64_t connect_ns;        /* time spent in successful connects, summed */
    uint64_t fallbacks;         /* tunnels that came here because an earlier choice could not take them */
    uint64_t bad_answers;       /* responses that were none, or none at all (502) */
    uint64_t sent;              /* clients that a directory or a redirect sent here */
    uint64_t reserved[4];
} pb_backend; /* 128 bytes */
