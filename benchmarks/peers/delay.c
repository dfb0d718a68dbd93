/*
 * Answers each request a known time after it was read: delay.c PORT DELAY_MS [STALL_MS PERIOD_MS].
 * With a stall, no answer leaves during the last STALL_MS of each period; they leave at its end.
 *
 * While a connection is open the server polls without sleeping: a wake-up takes up to 0.1 ms.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 512, READ = 4096, MAX_PENDING = 1 << 16, MS = 1000000 };
struct client { int fd; unsigned pending; size_t used; char buffer[READ]; };

/* All answers have the same delay, so the first that is read is the first that is due. */
static struct { struct client *to; uint64_t due; } queue[MAX_PENDING];
static size_t first, pending, open_connections;
static uint64_t start, delay, stall, period;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t due_at(uint64_t read_at) {
    uint64_t due = read_at + delay;
    if (!stall) return due;
    uint64_t phase = (due - start) % period;
    return phase < period - stall ? due : due - phase + period;
}

static void end(struct client *c) {
    if (c->fd >= 0) close(c->fd), open_connections--;
    c->fd = -1;
    if (!c->pending) free(c);
}

static void take(struct client *c) {
    ssize_t got = read(c->fd, c->buffer + c->used, READ - c->used);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return end(c);
    uint64_t due = due_at(now_ns());
    char *from = c->buffer, *until = c->buffer + c->used + got, *feed;
    while ((feed = memchr(from, '\n', (size_t)(until - from)))) {
        if (feed - from < 5 || feed - from >= LINE || feed[-1] != '\r' || memcmp(from, "TIME", 4)) return end(c);
        if (pending == MAX_PENDING) exit(1);
        size_t at = (first + pending++) % MAX_PENDING;
        queue[at].to = c, queue[at].due = due, c->pending++;
        from = feed + 1;
    }
    c->used = (size_t)(until - from);
    if (c->used) memmove(c->buffer, from, c->used);
    if (c->used >= LINE) end(c);
}

static void answer_due(void) {
    char text[16];
    while (pending && queue[first].due <= now_ns()) {
        struct client *c = queue[first].to;
        time_t now = time(NULL);
        size_t length = strftime(text, sizeof text, "JAM %H:%M:%S\r\n", localtime(&now));
        first = (first + 1) % MAX_PENDING, pending--, c->pending--;
        if (c->fd < 0 || send(c->fd, text, length, MSG_NOSIGNAL) != (ssize_t)length) end(c);
    }
}

static uint64_t argument_ns(int argc, char **argv, int n) {
    return argc > n ? (uint64_t)(atof(argv[n]) * MS) : 0;
}

int main(int argc, char **argv) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0")),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, poller = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    delay = argument_ns(argc, argv, 2), stall = argument_ns(argc, argv, 3), period = argument_ns(argc, argv, 4);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (stall > period || bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1024)) return 1;
    struct epoll_event e = {.events = EPOLLIN}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    start = now_ns();
    for (;;) {
        int fd, ready = epoll_wait(poller, events, 256, open_connections ? 0 : -1);
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            if (c) take(c);
            while (!c && (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                if (!(c = calloc(1, sizeof *c))) return 1;
                c->fd = fd, e.data.ptr = c, c = NULL, open_connections++;
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
            }
        }
        answer_due();
    }
}
