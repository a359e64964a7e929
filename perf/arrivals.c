/* An open-loop load: clients come by the clock, whether others have their answers or not, each over a connection of its
 * own, and close it when their patience is over.
 *
 *     cc -O2 -o arrivals arrivals.c -lm && ./arrivals PORT RATE PATIENCE_MS WARM_SECONDS SECONDS
 *
 * Prints one line of JSON: of those that came within SECONDS, how many had their 200 in time, how many another answer,
 * how long those with a 200 waited, and how many each second of the whole run had. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CLIENTS_MAX (1 << 22)
#define BUCKETS 60000 /* of a tenth of a millisecond */

struct client {
    int fd; /* -1: done */
    long long came_us;
};

static struct client *clients;
static unsigned took[BUCKETS];
static const char request[] = "GET /ping HTTP/1.1\r\nHost: perf\r\nConnection: close\r\n\r\n";

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static long long count_from, count_to;

static int is_counted(struct client *c) {
    return c->came_us >= count_from && c->came_us < count_to;
}

static double percentile_s(long count, double part) {
    long seen = 0;
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += took[i]) >= count * part) return i / 1e4;
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    int port = atoi(argv[1]), ep = epoll_create1(0);
    double rate = atof(argv[2]);
    long long patience_us = atof(argv[3]) * 1000, warm_us = atof(argv[4]) * 1e6, length_us = atof(argv[5]) * 1e6;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    clients = calloc(CLIENTS_MAX, sizeof *clients);
    srand48(1);
    long long began = now_us(), next = began, end = began + warm_us + length_us, now;
    count_from = began + warm_us, count_to = end;
    long came = 0, oldest = 0, sent = 0, in_time = 0, refused = 0, left = 0, failed = 0;
    static long by_second[3600];
    char buf[65536];
    /* The load goes on until the last that is counted has left: else the server would serve its backlog in peace. */
    while ((now = now_us()) < end + patience_us) {
        while (next <= now && came < CLIENTS_MAX) {
            struct client *c = &clients[came];
            c->came_us = next; /* when it was to come: a late generator is not forgiven */
            c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            if (c->fd < 0 || (connect(c->fd, (void *)&at, sizeof at) && errno != EINPROGRESS)) {
                failed++;
                if (c->fd >= 0) close(c->fd);
                c->fd = -1;
            } else {
                struct epoll_event ev = {.events = EPOLLOUT, .data.u64 = came};
                epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev);
            }
            if (is_counted(c)) sent++;
            came++;
            next += -1e6 / rate * log(1 - drand48());
        }
        for (; oldest < came && clients[oldest].came_us + patience_us <= now; oldest++) {
            if (clients[oldest].fd < 0) continue;
            close(clients[oldest].fd);
            clients[oldest].fd = -1;
            if (is_counted(&clients[oldest])) left++;
        }
        struct epoll_event es[512];
        int n = epoll_wait(ep, es, 512, 1);
        now = now_us();
        for (int i = 0; i < n; i++) {
            struct client *c = &clients[es[i].data.u64];
            if (c->fd < 0) continue;
            int counts = is_counted(c);
            if (es[i].events & EPOLLOUT && !(es[i].events & (EPOLLERR | EPOLLHUP))) {
                if (write(c->fd, request, sizeof request - 1) == sizeof request - 1) {
                    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = es[i].data.u64};
                    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
                    continue;
                }
            }
            ssize_t bytes = read(c->fd, buf, sizeof buf);
            if (bytes < 0 && errno == EAGAIN) continue;
            close(c->fd);
            c->fd = -1;
            if (bytes > 12 && !strncmp(buf, "HTTP/1.1 200", 12)) {
                long second = (c->came_us - began) / 1000000;
                if (second < 3600) by_second[second]++;
                if (!counts) continue;
                in_time++;
                long bucket = (now - c->came_us) / 100;
                took[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
            } else if (counts) {
                if (bytes > 12) refused++;
                else failed++;
            }
        }
    }
    printf("{\"sent\":%ld,\"in_time\":%ld,\"refused\":%ld,\"left\":%ld,\"failed\":%ld,\"p50_s\":%f,\"p99_s\":%f,\"by_second\":[", sent, in_time,
           refused, left, failed, percentile_s(in_time, 0.5), percentile_s(in_time, 0.99));
    for (long second = 0; second < (warm_us + length_us) / 1000000; second++) printf(second ? ",%ld" : "%ld", by_second[second]);
    printf("]}\n");
    return 0;
}
