/* The floor: one thread, one epoll, one read and one write per wake-up. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 512, ANSWER = 14, READ = 4096 };
struct client { int fd; size_t used; char buffer[READ]; };

static const char *answer(void) {
    static char text[ANSWER + 1];
    static time_t second = -1;
    time_t now = time(NULL);
    if (now != second) strftime(text, sizeof text, "JAM %H:%M:%S\r\n", localtime(&now)), second = now;
    return text;
}

static int serve(struct client *c) {
    char out[READ / 6 * ANSWER], *from = c->buffer, *feed;
    size_t length = 0;
    ssize_t got = read(c->fd, c->buffer + c->used, READ - c->used);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    char *end = c->buffer + c->used + got;
    while ((feed = memchr(from, '\n', (size_t)(end - from)))) {
        if (feed - from < 5 || feed - from >= LINE || feed[-1] != '\r' || memcmp(from, "TIME", 4)) return 0;
        memcpy(out + length, answer(), ANSWER);
        length += ANSWER, from = feed + 1;
    }
    c->used = (size_t)(end - from);
    if (c->used) memmove(c->buffer, from, c->used);
    if (c->used >= LINE) return 0;
    return !length || send(c->fd, out, length, MSG_NOSIGNAL) == (ssize_t)length;
}

int main(int argc, char **argv) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0")),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, poller = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1024)) return 1;
    struct epoll_event e = {.events = EPOLLIN}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int fd, ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            if (c && !serve(c)) close(c->fd), free(c);
            while (!c && (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                if (!(c = malloc(sizeof *c))) return 1;
                c->fd = fd, c->used = 0, e.data.ptr = c, c = NULL;
                e.events = EPOLLIN, epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
            }
        }
    }
}
