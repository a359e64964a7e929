/* The floor: what a single-threaded LIFO proxy costs when all it does is move bytes. It parses nothing, times
 * nothing, logs nothing, and takes one read for one request. A real front end is measured against it: what that
 * costs above this is its own.
 *
 *     cc -O2 -o floor floor.c && ./floor PORT WORKER_SOCKET... */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define WORKERS_MAX 1024
#define LISTEN_BACKLOG 4096

enum kind { LISTENER, CLIENT, WORKER };

struct conn {
    enum kind kind;
    int fd, bytes;
    int owed;            /* a client's: its request is waiting or at work, so it stays in memory though it left */
    struct conn *serves; /* a worker's: whom it answers */
    struct conn *behind; /* a waiting client's: the next in the queue */
    char buf[4096];
};

static struct conn *idle[WORKERS_MAX], *first, *last;
static int idle_count, ep;

static struct conn *watch(int fd, enum kind kind) {
    struct conn *c = calloc(1, sizeof *c);
    c->kind = kind;
    c->fd = fd;
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    return c;
}

static void move(struct conn *from, int fd) {
    if (write(fd, from->buf, from->bytes) < 0) return; /* the peer has gone: its own event says so */
}

static void assign(struct conn *worker, struct conn *client) {
    worker->serves = client;
    move(client, worker->fd);
}

static void wait_in_line(struct conn *client) {
    client->behind = 0;
    if (first) last->behind = client;
    else first = client;
    last = client;
}

static void answered(struct conn *client) {
    client->owed = 0;
    if (client->fd < 0) free(client);
}

static void request(struct conn *client) {
    static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n"
                             "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nok";
    if (!memcmp(client->buf, "GET /server", 11)) {
        if (write(client->fd, ok, sizeof ok - 1) < 0) return;
    } else {
        client->owed = 1;
        if (idle_count) assign(idle[--idle_count], client);
        else wait_in_line(client);
    }
}

static void answer(struct conn *worker) {
    if (worker->serves->fd >= 0) move(worker, worker->serves->fd);
    answered(worker->serves);
    while (first) {
        struct conn *next = first;
        first = next->behind;
        if (next->fd >= 0) {
            assign(worker, next);
            return;
        }
        answered(next); /* left while it waited */
    }
    idle[idle_count++] = worker;
}

static void gone(struct conn *client) {
    if (client->kind == WORKER) exit(1);
    close(client->fd);
    client->fd = -1;
    if (!client->owed) free(client);
}

int main(int argc, char **argv) {
    if (argc < 3 || argc - 2 > WORKERS_MAX) return 2;
    signal(SIGPIPE, SIG_IGN);
    int one = 1, l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(l, (void *)&at, sizeof at) || listen(l, LISTEN_BACKLOG)) return 1;
    ep = epoll_create1(0);
    watch(l, LISTENER);
    for (int i = 2; i < argc; i++) {
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        strncpy(un.sun_path, argv[i], sizeof un.sun_path - 1);
        int s = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(s, (void *)&un, sizeof un)) return 1;
        idle[idle_count++] = watch(s, WORKER);
    }
    for (struct epoll_event es[256];;) {
        int n = epoll_wait(ep, es, 256, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = es[i].data.ptr;
            if (c->kind == LISTENER) {
                for (int s; (s = accept4(l, 0, 0, SOCK_NONBLOCK)) >= 0;) {
                    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    watch(s, CLIENT);
                }
            } else if ((c->bytes = read(c->fd, c->buf, sizeof c->buf)) <= 0) gone(c);
            else if (c->kind == CLIENT) request(c);
            else answer(c);
        }
    }
}
