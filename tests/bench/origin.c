/* The app behind every proxy: one thread, epoll, no allocation after a connection's first. Speaks HTTP/1.1 (keep-alive)
 * over TCP and over a Unix socket, uwsgi over a Unix socket, and echoes WebSocket messages. The last part of the path
 * says what is answered; `seen` answers with the head as it arrived. Every answer, and every echo, is counted in a file
 * that the benchmark maps into its memory, so that a request is counted in the same way whoever generates it.
 *
 *   origin COUNT_FILE TCP_PORT HTTP_SOCKET UWSGI_SOCKET */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_FDS = 65536, BUFFER = 64 * 1024 };
enum kind { HTTP, UWSGI, WEBSOCKET };

struct connection {
  enum kind kind;
  size_t have;    /* bytes in `in` */
  size_t skip;    /* bytes of a request's body that are still to come */
  const char *out;
  size_t out_left;
  int last;       /* whether the connection ends with what is in `out` */
  char in[BUFFER];
};

static struct connection *connections[MAX_FDS];
static char seen[BUFFER + 256];
static volatile uint64_t *count;

static struct { const char *name; char *bytes; size_t size; } answers[5];

static void die(const char *what) {
  perror(what);
  exit(1);
}

/* What a Django app says beside its answer; `bare` has the least. */
static void prepare(int slot, const char *name, const char *type, size_t size, int bare) {
  char head[1024];
  int length = snprintf(head, sizeof head,
      bare ? "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n"
           : "HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: Thu, 26 Nov 2026 12:00:00 GMT\r\nConnection: keep-alive\r\n"
             "Content-Type: %s\r\nX-Frame-Options: DENY\r\nVary: Accept-Language, Cookie\r\nContent-Length: %zu\r\n"
             "X-Content-Type-Options: nosniff\r\nReferrer-Policy: same-origin\r\n"
             "Cross-Origin-Opener-Policy: same-origin\r\n\r\n",
      type, size);
  char *bytes = malloc(length + size);
  memcpy(bytes, head, length);
  for (size_t at = 0; at < size; at++) bytes[length + at] = "{\"name\": \"value\", \"number\": 1234}, "[at % 35];
  answers[slot].name = name;
  answers[slot].bytes = bytes;
  answers[slot].size = length + size;
}

static void finish(int fd) {
  close(fd); /* epoll forgets it by itself; the memory waits for the descriptor's next use */
}

/* Writes what is due. Returns -1 when the connection is over. */
static int flush(int fd, struct connection *c) {
  while (c->out_left) {
    ssize_t n = send(fd, c->out, c->out_left, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EAGAIN) return 0;
      finish(fd);
      return -1;
    }
    c->out += n;
    c->out_left -= n;
  }
  if (c->last) {
    finish(fd);
    return -1;
  }
  return 0;
}

/* Chooses the answer by the path's last part; `head` is what `seen` shows. */
static void answer(struct connection *c, const char *path, size_t length, const char *head, size_t head_length) {
  const char *query = memchr(path, '?', length);
  if (query) length = query - path;
  const char *slash = memrchr(path, '/', length);
  if (slash) length -= slash + 1 - path, path = slash + 1;
  ++*count;
  for (size_t slot = 0; slot < sizeof answers / sizeof *answers; slot++)
    if (strlen(answers[slot].name) == length && !memcmp(answers[slot].name, path, length)) {
      c->out = answers[slot].bytes;
      c->out_left = answers[slot].size;
      return;
    }
  if (length == 4 && !memcmp(path, "seen", 4)) {
    int n = sprintf(seen, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n", head_length);
    memcpy(seen + n, head, head_length);
    c->out = seen;
    c->out_left = n + head_length;
    return;
  }
  c->out = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
  c->out_left = strlen(c->out);
}

/* Each of these takes one message off the front of `in` and returns its length, 0 when it isn't whole, -1 when it is
 * none. */

static ssize_t take_http(struct connection *c) {
  char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
  if (!end) return c->have == BUFFER ? -1 : 0;
  size_t length = end + 4 - c->in;
  char *path = memchr(c->in, ' ', length);
  char *path_end = path ? memchr(path + 1, ' ', end - path - 1) : NULL;
  if (!path_end) return -1;
  path++;
  if (path_end - path == 3 && !memcmp(path, "/ws", 3)) {
    /* The generator's key is the one of RFC 6455, section 1.3. */
    c->out = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
             "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    c->out_left = strlen(c->out);
    c->kind = WEBSOCKET;
    return length;
  }
  if (c->in[0] == 'P') { /* POST */
    *end = 0;
    char *field = strcasestr(c->in, "\r\ncontent-length:");
    *end = '\r';
    if (!field) return -1;
    c->skip = strtoul(field + 17, NULL, 10);
  }
  answer(c, path, path_end - path, c->in, length);
  return length;
}

static ssize_t take_uwsgi(struct connection *c) {
  static char shown[BUFFER];
  if (c->have < 4) return 0;
  size_t length = 4 + (uint8_t)c->in[1] + ((uint8_t)c->in[2] << 8), at = 4, shown_length = 0;
  if (length > BUFFER) return -1;
  if (c->have < length) return 0;
  char *path = NULL;
  size_t path_length = 0;
  while (at + 2 <= length) {
    size_t name = (uint8_t)c->in[at] + ((uint8_t)c->in[at + 1] << 8);
    char *key = c->in + at + 2;
    at += 2 + name;
    if (at + 2 > length) return -1;
    size_t value = (uint8_t)c->in[at] + ((uint8_t)c->in[at + 1] << 8);
    char *its = c->in + at + 2;
    at += 2 + value;
    if (at > length) return -1;
    if (name == 9 && !memcmp(key, "PATH_INFO", 9)) path = its, path_length = value;
    if (path_length >= 5 && !memcmp(path + path_length - 5, "/seen", 5))
      shown_length += snprintf(shown + shown_length, sizeof shown - shown_length, "%.*s: %.*s\r\n", (int)name, key,
                               (int)value, its);
  }
  if (!path) return -1;
  answer(c, path, path_length, shown, shown_length);
  c->last = 1;
  return length;
}

static ssize_t take_websocket(struct connection *c) {
  static char out[256];
  if (c->have < 2) return 0;
  size_t size = (uint8_t)c->in[1] & 0x7f, length = 2 + 4 + size;
  if (!(c->in[1] & 0x80) || size > 125) return -1;
  if (c->have < length) return 0;
  if ((c->in[0] & 0x0f) == 8) return -1;
  out[0] = c->in[0];
  out[1] = size;
  for (size_t at = 0; at < size; at++) out[2 + at] = c->in[6 + at] ^ c->in[2 + at % 4];
  c->out = out;
  c->out_left = 2 + size;
  ++*count;
  return length;
}

static void serve(int fd, struct connection *c) {
  for (;;) {
    if (flush(fd, c) < 0) return;
    if (c->out_left) return; /* a slow reader: go on when it has read */
    ssize_t n = recv(fd, c->in + c->have, BUFFER - c->have, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      finish(fd);
      return;
    }
    int all = (size_t)n < BUFFER - c->have;
    c->have += n;
    for (;;) {
      size_t skipped = c->skip < c->have ? c->skip : c->have;
      c->skip -= skipped;
      ssize_t taken = 0;
      if (!c->skip && c->have > skipped) {
        if (skipped) memmove(c->in, c->in + skipped, c->have - skipped);
        c->have -= skipped;
        skipped = 0;
        taken = c->kind == HTTP ? take_http(c) : c->kind == UWSGI ? take_uwsgi(c) : take_websocket(c);
      }
      if (taken < 0) {
        finish(fd);
        return;
      }
      size_t gone = skipped + taken;
      if (gone && gone < c->have) memmove(c->in, c->in + gone, c->have - gone);
      c->have -= gone;
      if (taken == 0) break;
      if (flush(fd, c) < 0) return;
      if (c->out_left) return;
    }
    if (all) return; /* edge-triggered, and a short read says that there is no more */
  }
}

static int listen_at(int fd, struct sockaddr *address, socklen_t size) {
  int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, address, size) || listen(fd, 4096)) die("listen");
  return fd;
}

static int listen_unix(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  unlink(path);
  return listen_at(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), (void *)&address, sizeof address);
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  int file = open(argv[1], O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof *count)) die(argv[1]);
  count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (count == MAP_FAILED) die("mmap");
  prepare(0, "bare", "text/plain", 60, 1);
  prepare(1, "small", "text/html; charset=utf-8", 60, 0);
  prepare(2, "4k", "application/json", 4 << 10, 0);
  prepare(3, "64k", "application/json", 64 << 10, 0);
  prepare(4, "1m", "application/json", 1 << 20, 0);

  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int listeners[3] = {
      listen_at(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), (void *)&address, sizeof address),
      listen_unix(argv[3]), listen_unix(argv[4])};
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  for (int at = 0; at < 3; at++)
    epoll_ctl(epoll, EPOLL_CTL_ADD, listeners[at],
              &(struct epoll_event){.events = EPOLLIN, .data.fd = listeners[at]});
  struct epoll_event events[256];
  for (;;) {
    int n = epoll_wait(epoll, events, 256, -1);
    for (int at = 0; at < n; at++) {
      int fd = events[at].data.fd;
      if (fd != listeners[0] && fd != listeners[1] && fd != listeners[2]) {
        serve(fd, connections[fd]);
        continue;
      }
      for (int peer; (peer = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        if (peer >= MAX_FDS) {
          close(peer);
          continue;
        }
        if (!connections[peer] && !(connections[peer] = malloc(sizeof **connections))) die("malloc");
        struct connection *c = connections[peer];
        c->kind = fd == listeners[2] ? UWSGI : HTTP;
        c->have = c->skip = c->out_left = c->last = 0;
        epoll_ctl(epoll, EPOLL_CTL_ADD, peer,
                  &(struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.fd = peer});
      }
    }
  }
}
