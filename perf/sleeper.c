/* A worker whose requests take a drawn time of sleep.
 *
 *     cc -O2 -o sleeper sleeper.c -lm            10 ms on average, exponential
 *     cc -O2 -DMIXED -o sleeper sleeper.c -lm    1 ms, and one in ten 100 ms */
#include <math.h>
#include "worker.h"

static useconds_t work_us(void) {
#ifdef MIXED
    return drand48() < 0.1 ? 100000 : 1000;
#else
    return -10000 * log(1 - drand48());
#endif
}

static int serve(int fd) {
    static const char pong[] = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Type: text/plain\r\n\r\npong";
    static char request[65536];
    if (read(fd, request, sizeof request) <= 0) return -1;
    usleep(work_us());
    return write(fd, pong, sizeof pong - 1) < 0 ? -1 : 0;
}

int main(int argc, char **argv) {
    srand48(getpid());
    work(argc, argv, serve);
}
