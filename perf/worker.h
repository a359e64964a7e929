/* A worker's side of the protocol, as far as a measurement needs it: listen, join, end on SIGTERM.
 *
 * Started by Rip Server it takes its place from the environment (SOCKET_PATH, CONTROL_SOCKET, WORKER_ID,
 * RIP_VERSION); started by hand, behind any other front end, its one argument is the socket to listen on. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static volatile sig_atomic_t serving, leaving;

/* SIGTERM ends a worker, but not in the middle of a request. */
static void leave(int signal) {
    (void)signal;
    if (!serving) _exit(0);
    leaving = 1;
}

static struct sockaddr_un unix_address(const char *path) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof at.sun_path) {
        fprintf(stderr, "socket path too long: %s\n", path);
        exit(2);
    }
    strcpy(at.sun_path, path);
    return at;
}

static void join(const char *control, const char *path) {
    struct sockaddr_un at = unix_address(control);
    char body[512], message[1024], answer[1024];
    int bytes = snprintf(body, sizeof body, "{\"op\":\"join\",\"workerId\":%s,\"pid\":%d,\"socket\":\"%s\",\"version\":%s}",
                         getenv("WORKER_ID"), (int)getpid(), path, getenv("RIP_VERSION"));
    bytes = snprintf(message, sizeof message,
                     "POST /worker HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     "Content-Length: %d\r\nConnection: close\r\n\r\n%s", bytes, body);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(s, (void *)&at, sizeof at) || write(s, message, bytes) != bytes) {
        perror(control);
        exit(1);
    }
    ssize_t got = read(s, answer, sizeof answer - 1);
    answer[got > 0 ? got : 0] = 0;
    if (strncmp(answer, "HTTP/1.1 200", 12)) {
        fprintf(stderr, "join refused: %s\n", answer);
        exit(1);
    }
    close(s);
}

/* Listens, joins if there is somebody to join, and hands each connection with something to read to `serve`, which
 * answers one request; -1: the connection is done with. */
static void work(int argc, char **argv, int (*serve)(int fd)) {
    const char *control = getenv("CONTROL_SOCKET"), *path = control ? getenv("SOCKET_PATH") : argc > 1 ? argv[1] : 0;
    if (!path) {
        fprintf(stderr, "usage: %s SOCKET (or CONTROL_SOCKET, SOCKET_PATH, WORKER_ID, RIP_VERSION)\n", argv[0]);
        exit(2);
    }
    signal(SIGTERM, leave);
    signal(SIGPIPE, SIG_IGN);

    struct sockaddr_un at = unix_address(path);
    unlink(path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), ep = epoll_create1(EPOLL_CLOEXEC);
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 512)) {
        perror(path);
        exit(1);
    }
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);
    if (control) join(control, path);

    for (struct epoll_event es[64];;) {
        int n = epoll_wait(ep, es, 64, -1);
        for (int i = 0; i < n; i++) {
            int fd = es[i].data.fd;
            serving = 1;
            if (fd == listener) {
                ev.data.fd = accept(listener, 0, 0);
                if (ev.data.fd >= 0) epoll_ctl(ep, EPOLL_CTL_ADD, ev.data.fd, &ev);
            } else if (serve(fd)) close(fd);
            serving = 0;
            if (leaving) _exit(0);
        }
    }
}
