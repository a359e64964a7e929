/* Clients that open a new connection for each request, without a pause: who is lost when a server stops or is replaced?
 *
 *     cc -O2 -o newcomers newcomers.c && ./newcomers PORT CLIENTS SECONDS
 *
 * Each client is a process of its own that connects, asks for /ping, and reads to the end. With SECONDS 0 each goes on
 * until its connection is refused (a server that stops). Prints one line of JSON: whole answers ("pong"), resets and
 * empty replies (after a connection was made), refusals, timeouts, other answers, and percentiles of the time from
 * connect to the last byte in µs. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BUCKET_US 20
#define BUCKETS 50000 /* a second; the last one holds everything slower */

enum { ANSWERS, RESETS, EMPTY, REFUSALS, TIMEOUTS, OTHERS, KINDS };
static const char *names[KINDS] = {"answers", "resets", "empty", "refusals", "timeouts", "others"};

struct counts {
    long kinds[KINDS];
    unsigned took[BUCKETS];
};

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static int of_errno(void) {
    if (errno == ECONNRESET || errno == EPIPE) return RESETS;
    if (errno == EAGAIN || errno == ETIMEDOUT || errno == EINPROGRESS) return TIMEOUTS;
    return OTHERS;
}

static int exchange(int port) {
    static const char request[] = "GET /ping HTTP/1.1\r\nHost: newcomers\r\nConnection: close\r\n\r\n";
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = 10};
    char answer[4096];
    int kind, bytes = 0, count = 0, s = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(s, (void *)&at, sizeof at)) {
        /* A reset here is one of a handshake: a refusal that came late. */
        kind = errno == ECONNREFUSED || errno == ECONNRESET ? REFUSALS : of_errno();
    } else if (send(s, request, sizeof request - 1, MSG_NOSIGNAL) < 0) {
        kind = of_errno();
    } else {
        while (bytes < (int)sizeof answer && (count = recv(s, answer + bytes, sizeof answer - bytes, 0)) > 0) bytes += count;
        if (count < 0)
            kind = of_errno();
        else if (!bytes)
            kind = EMPTY;
        else
            kind = bytes > 16 && !memcmp(answer + 9, "200", 3) && !memcmp(answer + bytes - 4, "pong", 4) ? ANSWERS : OTHERS;
    }
    if (kind == OTHERS && bytes) fprintf(stderr, "%.*s\n", bytes < 300 ? bytes : 300, answer);
    close(s);
    return kind;
}

static long long percentile_us(struct counts *all, double part) {
    long seen = 0;
    for (long i = 0; i < BUCKETS; i++)
        if ((seen += all->took[i]) >= all->kinds[ANSWERS] * part) return (i + 1) * BUCKET_US;
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int port = atoi(argv[1]), clients = atoi(argv[2]);
    long long length_us = atof(argv[3]) * 1e6, begin = now_us();
    struct counts *all = mmap(0, clients * sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < clients; i++)
        if (!fork()) {
            int kind = ANSWERS;
            while (length_us ? now_us() < begin + length_us : kind != REFUSALS) {
                long long since = now_us();
                kind = exchange(port);
                all[i].kinds[kind]++;
                long long took = (now_us() - since) / BUCKET_US;
                if (kind == ANSWERS) all[i].took[took < BUCKETS ? took : BUCKETS - 1]++;
            }
            _exit(0);
        }
    while (wait(0) > 0) {}
    long long passed_us = now_us() - begin;
    for (int i = 1; i < clients; i++) {
        for (int kind = 0; kind < KINDS; kind++) all[0].kinds[kind] += all[i].kinds[kind];
        for (int at = 0; at < BUCKETS; at++) all[0].took[at] += all[i].took[at];
    }
    printf("{\"seconds\": %.3f", passed_us / 1e6);
    for (int kind = 0; kind < KINDS; kind++) printf(", \"%s\": %ld", names[kind], all[0].kinds[kind]);
    printf(", \"p50\": %lld, \"p99\": %lld}\n", percentile_us(all, 0.5), percentile_us(all, 0.99));
    return 0;
}
