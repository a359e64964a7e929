/* A load of a known shape, for what wrk can't say: so many connections that ask again as soon as they have their
 * answer, so many that are only open, and a measured time that starts when all of them are connected and answered
 * once, so that neither connecting nor the first filling of a queue is counted.
 *
 *     cc -O2 -o load load.c && ./load PORT BUSY QUIET SECONDS
 *
 * Prints `begin`, then after SECONDS one line of JSON. Asks for /ping and takes an answer to end with "pong". */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUCKET_US 10
#define BUCKETS (60 * 1000 * 1000 / BUCKET_US) /* the last one holds everything slower */
#define CONNECTIONS_MAX 65536

static unsigned took[BUCKETS];
static long long asked_us[CONNECTIONS_MAX]; /* by descriptor */
static char answered_once[CONNECTIONS_MAX];
static int port;

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static int connected(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (s < 0 || s >= CONNECTIONS_MAX || connect(s, (void *)&at, sizeof at)) {
        perror("connect");
        exit(1);
    }
    return s;
}

static void ask(int fd, const char *path) {
    char request[64];
    int bytes = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: perf\r\n\r\n", path);
    asked_us[fd] = now_us();
    if (write(fd, request, bytes) != bytes) perror("write");
}

static long long percentile_us(long requests, double part) {
    long seen = 0;
    for (long long i = 0; i < BUCKETS; i++)
        if ((seen += took[i]) >= requests * part) return i * BUCKET_US;
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    port = atoi(argv[1]);
    int busy = atoi(argv[2]), quiet = atoi(argv[3]), ep = epoll_create1(0), to_come = busy;
    long long length_us = atof(argv[4]) * 1e6, began_us = 0, now = 0;
    long requests = 0, errors = 0;
    char buf[65536];
    while (quiet--) { /* answered once and kept alive */
        int s = connected();
        ask(s, "/server");
        if (read(s, buf, sizeof buf) <= 0) errors++;
    }
    int first = -1;
    for (int i = 0; i < busy; i++) {
        int s = connected();
        if (first < 0) first = s;
        struct epoll_event ev = {.events = EPOLLIN, .data.fd = s};
        epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
    }
    for (int i = 0; i < busy; i++) ask(first + i, "/ping"); /* descriptors are given out in order */
    while (!began_us || now < began_us + length_us) {
        struct epoll_event es[256];
        int n = epoll_wait(ep, es, 256, 1000);
        for (int i = 0; i < n; i++) {
            int fd = es[i].data.fd;
            ssize_t bytes = read(fd, buf, sizeof buf);
            now = now_us();
            if (bytes <= 0) {
                errors++;
                close(fd);
                if (!--busy) return 1;
                continue;
            }
            if (strncmp(buf, "HTTP/1.1 200", bytes < 12 ? bytes : 12)) errors++;
            else if (bytes < 4 || memcmp(buf + bytes - 4, "pong", 4)) continue;
            if (began_us) {
                long long bucket = (now - asked_us[fd]) / BUCKET_US;
                took[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
                requests++;
            }
            if (!answered_once[fd]) {
                answered_once[fd] = 1;
                if (!--to_come) {
                    printf("begin\n");
                    fflush(stdout);
                    began_us = now_us();
                }
            }
            ask(fd, "/ping");
        }
        now = now_us();
    }
    printf("{\"requests\":%ld,\"seconds\":%f,\"p50_us\":%lld,\"p99_us\":%lld,\"errors\":%ld}\n", requests, (now - began_us) / 1e6,
           percentile_us(requests, 0.5), percentile_us(requests, 0.99), errors);
    return 0;
}
