/* The fastest worker that is still honest: epoll, keep-alive, one fixed answer; every server measured has it
 * behind it. A request is taken to come in one read, as small ones from a front end do.
 *
 *     cc -O2 -o pong pong.c                      answers at once
 *     cc -O2 -DDELAY_US=400 -o pong-slow pong.c  sleeps first, so that requests must wait for a worker */
#include "worker.h"

#ifndef DELAY_US
#define DELAY_US 0
#endif

static int serve(int fd) {
    static const char pong[] = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Type: text/plain\r\n\r\npong";
    static char request[65536];
    if (read(fd, request, sizeof request) <= 0) return -1;
    if (DELAY_US) usleep(DELAY_US);
    return write(fd, pong, sizeof pong - 1) < 0 ? -1 : 0;
}

int main(int argc, char **argv) {
    work(argc, argv, serve);
}
