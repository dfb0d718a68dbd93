/*
 * Load client: one thread, one epoll, so that the server on the other core is what is measured.
 *
 *   closed   C connections, each with P requests in flight; the next P go out together when the
 *            last of the P answers is in.
 *   split    closed with P = 1, and every fourth line leaves in two pieces. The second piece waits
 *            until as many other answers came as there are connections, so that a server that
 *            takes its connections in turn has read the first piece by itself.
 *   open     C connections; R requests a second are due at even intervals. A due request leaves on a
 *            free connection, or waits for one. The client polls without sleeping for 0.5 ms
 *            after each request or answer, and from 0.1 ms before a request is due, so that it is
 *            not late itself.
 *   connect  N times at once: connect, ask, read the answer, close.
 *   idle     C connections that asked once; says so, then holds them until stdin ends.
 *
 * Latency runs from the last byte of a request (connect: from before the connect; open: from when
 * the request was due) to its answer. The answers inside the window count; open: the answers to the
 * requests that were due inside it, and a request that was never sent is an error.
 * Every answer is compared with the expected prefix, and its length too if one is given.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum { BUFFER = 2048, EVENTS = 256, SUB_BITS = 10, SUB = 1 << SUB_BITS };
enum { BUCKETS = (64 - SUB_BITS + 1) * SUB, MAX_ERRORS = 1000, DRAIN_MS = 10000 };
enum { POLL_NS = 500000, LATEST_WAKE_UP_NS = 100000 };

struct conn {
    int fd;
    unsigned used, awaiting, lines, split_at;
    uint64_t since;
    bool asked;
    char buffer[BUFFER];
};

struct held {
    unsigned index;
    uint64_t release;
};

static struct {
    int port, connections, pipeline;
    size_t answer_length, request_length, prefix_length;
    double seconds, warmup, rate;
    const char *mode, *request, *prefix;
} opt = {.connections = 1, .pipeline = 1, .seconds = 1, .warmup = 0.1, .mode = "closed",
         .request = "TIME\r\n", .prefix = "JAM "};

static uint64_t histogram[BUCKETS];
static uint64_t sent, answered, requests, errors, in_flight;
static uint64_t window_start, window_end;
static int poller;
static struct conn *conns;
static char *batch;
static size_t batch_length;
static struct held *held;
static size_t held_first, held_count;
static struct conn **free_conns;
static size_t free_count;
static uint64_t first_due, next_due, due_count;
static bool splitting, connecting, opening;

static void fatal(const char *what) {
    fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
    exit(2);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* 1,024 buckets to each power of two: a value is known to 0.1 %. */
static unsigned bucket_of(uint64_t ns) {
    if (ns < SUB) return (unsigned)ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - SUB_BITS;
    return (shift + 1) * SUB + (unsigned)((ns >> shift) - SUB);
}

static double percentile_us(double share) {
    uint64_t rank = (uint64_t)((double)requests * share), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > rank || (seen == requests && seen > 0)) {
            if (i < SUB) return (double)i / 1e3;
            uint64_t low = (uint64_t)(i % SUB + SUB) << (i / SUB - 1);
            return ((double)low + (double)(1ull << (i / SUB - 1)) / 2) / 1e3;
        }
    }
    return 0;
}

/* Ports of one source address run out after some 28,000 closed connections (TIME_WAIT), so the
 * connections take turns in 250 x 250 loopback addresses. */
static int new_socket(int flags) {
    static unsigned turn;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0) fatal("socket");
    unsigned n = turn++ % (250 * 250);
    struct sockaddr_in source = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(0x7f010000u | (n % 250 + 1) << 8 | (n / 250 + 1));
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&source, sizeof source)) fatal("bind");
    return fd;
}

static int connect_socket(int fd) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return connect(fd, (struct sockaddr *)&to, sizeof to);
}

static void watch(struct conn *c, uint32_t events) {
    struct epoll_event e = {.events = events | EPOLLET, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e)) fatal("epoll_ctl");
}

static void lose(struct conn *c) {
    errors++;
    if (c->awaiting) in_flight--;
    c->awaiting = 0;
    close(c->fd);
    c->fd = -1;
}

static bool put(struct conn *c, const char *bytes, size_t length) {
    if (send(c->fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length) return true;
    lose(c);
    return false;
}

static void ask(struct conn *c, uint64_t now) {
    unsigned line = c->lines++;
    sent += (unsigned)opt.pipeline;
    if (splitting && line % 4 == 3) {
        c->split_at = 1 + line / 4 % (unsigned)(opt.request_length - 1);
        if (!put(c, opt.request, c->split_at)) return;
        size_t at = (held_first + held_count++) % (size_t)opt.connections;
        held[at] = (struct held){(unsigned)(c - conns), answered + (unsigned)opt.connections};
        return;
    }
    c->since = now;
    c->awaiting = (unsigned)opt.pipeline;
    in_flight++;
    put(c, batch, batch_length);
}

/* The oldest held piece also goes when nothing else is under way that could release it. */
static void send_held(void) {
    while (held_count && (answered >= held[held_first].release || in_flight == 0)) {
        struct conn *c = &conns[held[held_first].index];
        held_first = (held_first + 1) % (size_t)opt.connections;
        held_count--;
        if (c->fd < 0) continue;
        c->awaiting = 1;
        c->since = now_ns();
        in_flight++;
        put(c, opt.request + c->split_at, opt.request_length - c->split_at);
    }
}

static bool send_due(uint64_t now) {
    uint64_t before = due_count;
    while (free_count && next_due <= now && next_due < window_end) {
        ask(free_conns[--free_count], next_due);
        next_due = first_due + (uint64_t)((double)++due_count * 1e9 / opt.rate);
    }
    return due_count > before;
}

/* Sleeps until an event or until the next request is nearly due; epoll_wait knows only milliseconds. */
static void wait_for_due(uint64_t now) {
    uint64_t until = next_due - LATEST_WAKE_UP_NS;
    if (next_due >= window_end || now >= until) return;
    struct timespec t = {(time_t)((until - now) / 1000000000u), (long)((until - now) % 1000000000u)};
    struct pollfd events = {.fd = poller, .events = POLLIN};
    ppoll(&events, 1, &t, NULL);
}

/* Returns how many whole answers the buffer held, and keeps what follows the last of them. */
static unsigned take_answers(struct conn *c) {
    char *from = c->buffer, *end = c->buffer + c->used, *feed;
    unsigned count = 0;
    while ((feed = memchr(from, '\n', (size_t)(end - from)))) {
        size_t length = (size_t)(feed + 1 - from);
        if (length < opt.prefix_length || memcmp(from, opt.prefix, opt.prefix_length) ||
            (opt.answer_length && length != opt.answer_length))
            errors++;
        count++;
        from = feed + 1;
    }
    c->used = (unsigned)(end - from);
    if (c->used) memmove(c->buffer, from, c->used);
    return count;
}

static void start_visit(struct conn *c) {
    c->since = now_ns();
    c->fd = new_socket(SOCK_NONBLOCK);
    c->used = 0;
    c->awaiting = 1;
    in_flight++;
    sent++;
    if (connect_socket(c->fd) && errno != EINPROGRESS) {
        lose(c);
        return;
    }
    c->asked = send(c->fd, opt.request, opt.request_length, MSG_NOSIGNAL) > 0;
    watch(c, c->asked ? EPOLLIN : EPOLLIN | EPOLLOUT);
}

static void on_event(struct conn *c, uint32_t events) {
    if (c->fd < 0) return;
    if (connecting && !c->asked && events & EPOLLOUT) {
        if (!put(c, opt.request, opt.request_length)) return;
        c->asked = true;
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t got = recv(c->fd, c->buffer + c->used, BUFFER - c->used, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        lose(c);
        return;
    }
    c->used += (unsigned)got;
    unsigned count = take_answers(c);
    if (count > c->awaiting || c->used == BUFFER) {
        lose(c);
        return;
    }
    if (!count) return;
    uint64_t now = now_ns();
    answered += count;
    c->awaiting -= count;
    uint64_t counts_at = opening ? c->since : now;
    if (counts_at >= window_start && counts_at < window_end) {
        requests += count;
        histogram[bucket_of(now - c->since)] += count;
    }
    if (c->awaiting) return;
    in_flight--;
    if (connecting) {
        close(c->fd);
        c->fd = -1;
    } else if (opening) {
        free_conns[free_count++] = c;
    } else if (now < window_end) {
        ask(c, now);
    }
}

/* One after the other and blocking: a thousand at once would test the listen backlog. */
static void open_all(void) {
    for (int i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        struct timeval patience = {.tv_sec = 10};
        int on = 1;
        c->fd = new_socket(0);
        setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (connect_socket(c->fd)) fatal("connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (send(c->fd, opt.request, opt.request_length, MSG_NOSIGNAL) < 0) fatal("send");
        sent++;
        do {
            ssize_t got = recv(c->fd, c->buffer + c->used, BUFFER - c->used, 0);
            if (got <= 0) fatal("first answer");
            c->used += (unsigned)got;
        } while (!take_answers(c));
        answered++;
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        watch(c, EPOLLIN);
    }
}

static void hold(void) {
    char ignored[64];
    printf("{\"connections\": %d, \"errors\": %llu}\n", opt.connections,
           (unsigned long long)errors);
    fflush(stdout);
    while (read(STDIN_FILENO, ignored, sizeof ignored) > 0) continue;
}

static double drive(void) {
    struct epoll_event events[EVENTS];
    double cpu_start = 0, cpu_end = 0;
    uint64_t now = now_ns(), active = now;
    window_start = now + (uint64_t)(opt.warmup * 1e9);
    window_end = window_start + (uint64_t)(opt.seconds * 1e9);
    first_due = next_due = now;
    for (struct conn *c = conns; c < conns + opt.connections; c++) {
        if (connecting)
            start_visit(c);
        else if (opening)
            free_conns[free_count++] = c;
        else
            ask(c, now);
    }
    while (errors < MAX_ERRORS) {
        int ready = epoll_wait(poller, events, EVENTS, opening ? 0 : 50);
        now = now_ns();
        if (!cpu_start && now >= window_start) cpu_start = cpu_seconds();
        if (!cpu_end && now >= window_end) cpu_end = cpu_seconds();
        for (int i = 0; i < ready; i++) {
            struct conn *c = events[i].data.ptr;
            on_event(c, events[i].events);
            if (connecting && c->fd < 0 && now < window_end) start_visit(c);
        }
        send_held();
        if (opening) {
            if (send_due(now_ns()) || ready > 0) active = now_ns();
            if (now > active + POLL_NS) wait_for_due(now);
        }
        if (!in_flight && !held_count && (!opening || next_due >= window_end)) break;
        if (now >= window_end + DRAIN_MS * 1000000ull) break;
    }
    if (opening && next_due < window_end)
        errors += (uint64_t)((double)(window_end - next_due) * opt.rate / 1e9) + 1;
    return (cpu_end ? cpu_end : cpu_seconds()) - cpu_start;
}

static void parse(int argc, char **argv) {
    static const struct option names[] = {
        {"port", 1, 0, 'p'},   {"mode", 1, 0, 'm'},    {"connections", 1, 0, 'c'},
        {"pipeline", 1, 0, 'P'}, {"seconds", 1, 0, 's'}, {"warmup", 1, 0, 'w'},
        {"request", 1, 0, 'r'}, {"prefix", 1, 0, 'x'},  {"length", 1, 0, 'l'},
        {"rate", 1, 0, 'R'},    {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", names, 0)) != -1;) {
        switch (o) {
        case 'p': opt.port = atoi(optarg); break;
        case 'm': opt.mode = optarg; break;
        case 'c': opt.connections = atoi(optarg); break;
        case 'P': opt.pipeline = atoi(optarg); break;
        case 's': opt.seconds = atof(optarg); break;
        case 'w': opt.warmup = atof(optarg); break;
        case 'R': opt.rate = atof(optarg); break;
        case 'r': opt.request = optarg; break;
        case 'x': opt.prefix = optarg; break;
        case 'l': opt.answer_length = (size_t)atoi(optarg); break;
        default: exit(2);
        }
    }
    opt.request_length = strlen(opt.request);
    opt.prefix_length = strlen(opt.prefix);
    splitting = !strcmp(opt.mode, "split");
    connecting = !strcmp(opt.mode, "connect");
    opening = !strcmp(opt.mode, "open");
    bool known = splitting || connecting || opening || !strcmp(opt.mode, "closed") ||
                 !strcmp(opt.mode, "idle");
    bool usable = opt.port > 0 && opt.connections > 0 && opt.pipeline > 0 && opt.request_length > 1;
    if (!known || !usable || opening != (opt.rate > 0) || (opt.pipeline > 1 && strcmp(opt.mode, "closed"))) {
        fprintf(stderr, "client: these options make no sense together\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    parse(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    poller = epoll_create1(EPOLL_CLOEXEC);
    conns = calloc((size_t)opt.connections, sizeof *conns);
    held = calloc((size_t)opt.connections, sizeof *held);
    free_conns = calloc((size_t)opt.connections, sizeof *free_conns);
    batch_length = opt.request_length * (size_t)opt.pipeline;
    batch = malloc(batch_length);
    if (poller < 0 || !conns || !held || !free_conns || !batch) fatal("start");
    for (int i = 0; i < opt.pipeline; i++)
        memcpy(batch + (size_t)i * opt.request_length, opt.request, opt.request_length);
    if (!connecting) open_all();
    if (!strcmp(opt.mode, "idle")) {
        hold();
        return 0;
    }
    double cpu = drive();
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"errors\": %llu, \"sent\": %llu, "
           "\"answered\": %llu, \"p50_us\": %.2f, \"p90_us\": %.2f, \"p99_us\": %.2f, "
           "\"p999_us\": %.2f, \"cpu_seconds\": %.6f}\n",
           (unsigned long long)requests, opt.seconds, (unsigned long long)errors,
           (unsigned long long)sent, (unsigned long long)answered, percentile_us(0.5),
           percentile_us(0.9), percentile_us(0.99), percentile_us(0.999), cpu);
    return 0;
}
