/* A worker for large bodies: `GET /down?bytes=N` answers N bytes, a request body (framed by Content-Length, as
 * a front end frames it) is read and thrown away, everything else is a small fixed answer. One request at a
 * time, and blocking while it lasts.
 *
 *     cc -O2 -o bodies bodies.c */
#define _GNU_SOURCE
#include "worker.h"

#define HEAD_BYTES_MAX 65536
#define PIECE_BYTES (256 * 1024)

static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok";
static char head[HEAD_BYTES_MAX + 1], piece[PIECE_BYTES];

static int send_all(int fd, const char *from, size_t bytes) {
    while (bytes) {
        ssize_t sent = write(fd, from, bytes);
        if (sent <= 0) return -1;
        from += sent;
        bytes -= sent;
    }
    return 0;
}

static int serve(int fd) {
    size_t have = 0;
    char *end;
    do {
        ssize_t got = have < HEAD_BYTES_MAX ? read(fd, head + have, HEAD_BYTES_MAX - have) : 0;
        if (got <= 0) return -1;
        head[have += got] = 0;
    } while (!(end = strstr(head, "\r\n\r\n")));
    size_t body_here = head + have - (end + 4);
    *end = 0;

    char *field = strcasestr(head, "\r\nContent-Length:");
    size_t left = field ? strtoull(field + 17, 0, 10) : 0;
    for (left -= body_here < left ? body_here : left; left;) {
        ssize_t got = read(fd, piece, left < sizeof piece ? left : sizeof piece);
        if (got <= 0) return -1;
        left -= got;
    }

    unsigned long long bytes;
    if (sscanf(head, "GET /down?bytes=%llu", &bytes) != 1)
        return send_all(fd, ok, sizeof ok - 1);
    int head_bytes = snprintf(head, sizeof head,
                              "HTTP/1.1 200 OK\r\nContent-Length: %llu\r\nContent-Type: application/octet-stream\r\n\r\n", bytes);
    if (send_all(fd, head, head_bytes)) return -1;
    for (memset(piece, 0, sizeof piece); bytes;) {
        size_t next = bytes < sizeof piece ? bytes : sizeof piece;
        if (send_all(fd, piece, next)) return -1;
        bytes -= next;
    }
    return 0;
}

int main(int argc, char **argv) {
    work(argc, argv, serve);
}
