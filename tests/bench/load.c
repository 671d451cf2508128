/* The loads that no generator of Debian's makes. All keep CONNECTIONS connections to 127.0.0.1:PORT.
 *
 *   load open PORT CONNECTIONS RATE SECONDS SEED REQUEST_FILE
 *     An open loop: requests are due at random times (Poisson, the same ones for one SEED) whether or not earlier ones
 *     have been answered, and latency counts from when a request was due. One that finds no free connection waits, and
 *     its wait counts. The first 0.05 s are left out. Prints quantiles in microseconds, as JSON.
 *   load websocket PORT CONNECTIONS
 *     A closed loop: every connection sends a text message of 32 bytes, waits for its echo, and sends the next one,
 *     until SIGTERM. Prints how many echoes came.
 *   load idle PORT CONNECTIONS REQUEST_FILE
 *     Every connection gets one answer. Then it prints "idle" and says nothing on any of them, until it is killed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 16384, BUFFER = 128 * 1024, MESSAGE = 32 };
static const int64_t SECOND = 1000000000;

struct connection {
  int fd;
  int64_t due;     /* of the request under way */
  size_t have;     /* bytes of its answer */
  char in[BUFFER];
};
static struct connection *connections[MAX_CONNECTIONS];
static int epoll, asked = 1, port;
static volatile sig_atomic_t stop;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static int64_t now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * SECOND + at.tv_nsec;
}

static struct connection *open_connection(void) {
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct connection *c = calloc(1, sizeof *c);
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(c->fd, (void *)&address, sizeof address)) die("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &asked, sizeof asked);
  return c;
}

static void open_connections(int n) {
  if (n < 1 || n > MAX_CONNECTIONS) exit(2);
  epoll = epoll_create1(0);
  for (int at = 0; at < n; at++) {
    struct connection *c = connections[at] = open_connection();
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
  }
}

/* Requests and messages are far shorter than a socket's buffer. */
static void put(struct connection *c, const char *bytes, size_t size) {
  if (send(c->fd, bytes, size, MSG_NOSIGNAL) != (ssize_t)size) die("send");
}

static void take(struct connection *c) {
  ssize_t n = recv(c->fd, c->in + c->have, BUFFER - 1 - c->have, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) return;
  if (n < 0) die("recv");
  if (n == 0) {
    fprintf(stderr, "load: the proxy closed a connection\n");
    exit(1);
  }
  c->have += n;
  c->in[c->have] = 0;
}

/* Whether the whole answer is there. Anything but a 200 with a length ends the run. */
static int whole(struct connection *c) {
  char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
  if (!end) return 0;
  char *length = strcasestr(c->in, "\r\ncontent-length:");
  if (strncmp(c->in, "HTTP/1.1 200", 12) || !length || length > end) {
    fprintf(stderr, "load: %.*s\n", (int)(end - c->in), c->in);
    exit(1);
  }
  return c->have >= end + 4 - c->in + strtoul(length + 17, NULL, 10);
}

static int ascending(const void *a, const void *b) {
  return *(const uint32_t *)a < *(const uint32_t *)b ? -1 : *(const uint32_t *)a > *(const uint32_t *)b;
}

static char request[BUFFER];

static size_t read_request(const char *path) {
  FILE *file = fopen(path, "r");
  size_t size = file ? fread(request, 1, sizeof request, file) : 0;
  if (!size) die(path);
  return size;
}

static void open_loop(int n, double rate, double seconds, uint64_t seed, const char *request_file) {
  size_t size = read_request(request_file);
  prctl(PR_SET_TIMERSLACK, 1); /* else the kernel adds 50 us to every wait */
  open_connections(n);

  size_t most = rate * (seconds + 2) * 1.1 + 10000, queued = 0, next_queued = 0, recorded = 0;
  int64_t *queue = calloc(most, sizeof *queue);
  uint32_t *latencies = calloc(most, sizeof *latencies);
  struct connection **idle = calloc(n, sizeof *idle);
  int idles = 0;
  for (int at = 0; at < n; at++) idle[idles++] = connections[at];

  uint64_t random = 88172645463325252 ^ seed << 32; /* xorshift64 */
  int64_t begin = now(), measured = begin + SECOND / 20, end = measured + seconds * SECOND;
  double due = begin;
  struct epoll_event events[256];
  for (;;) {
    int64_t time = now();
    while (due <= time && due < end) {
      if (queued == most) exit(1);
      queue[queued++] = due;
      random ^= random << 13, random ^= random >> 7, random ^= random << 17;
      due += -log(((random >> 11) + 1) / 9007199254740993.0) / rate * SECOND;
    }
    while (idles && next_queued < queued) {
      struct connection *c = idle[--idles];
      c->due = queue[next_queued++];
      c->have = 0;
      put(c, request, size);
    }
    if (time >= end && idles == n) break;
    if (time > end + 5 * SECOND) {
      fprintf(stderr, "load: %d requests without an answer, %zu not sent\n", n - idles, queued - next_queued);
      exit(1);
    }
    int64_t wait = (due < end ? (int64_t)due : time < end ? end : time + SECOND) - now();
    if (wait < 0) wait = 0;
    int ready = epoll_pwait2(epoll, events, 256, &(struct timespec){wait / SECOND, wait % SECOND}, NULL);
    for (int at = 0; at < ready; at++) {
      struct connection *c = events[at].data.ptr;
      take(c);
      if (!whole(c)) continue;
      if (c->due >= measured) latencies[recorded++] = (now() - c->due) / 10; /* 10 ns: 42 s fit */
      idle[idles++] = c;
    }
  }
  qsort(latencies, recorded, sizeof *latencies, ascending);
  if (!recorded) exit(1);
  double quantiles[] = {0.5, 0.99};
  printf("{\"requests\": %zu", recorded);
  for (int at = 0; at < 2; at++)
    printf(", \"%g\": %.2f", quantiles[at], latencies[(size_t)(quantiles[at] * (recorded - 1))] / 100.0);
  printf("}\n");
}

static void end_soon(int signal) {
  (void)signal;
  stop = 1;
}

static void send_message(struct connection *c) {
  /* 32 zeros on the wire, which the mask makes "maskmask..." of. */
  static char frame[2 + 4 + MESSAGE] = {(char)0x81, (char)(0x80 | MESSAGE), 'm', 'a', 's', 'k'};
  c->have = 0;
  put(c, frame, sizeof frame);
}

static void websocket(int n) {
  uint64_t echoes = 0;
  char ask[256];
  int size = snprintf(ask, sizeof ask,
      "GET /ws HTTP/1.1\r\nHost: www.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
  open_connections(n);
  for (int at = 0; at < n; at++) {
    struct connection *c = connections[at];
    put(c, ask, size);
    while (!memmem(c->in, c->have, "\r\n\r\n", 4)) take(c);
    if (strncmp(c->in, "HTTP/1.1 101", 12)) {
      fprintf(stderr, "load: %s\n", c->in);
      exit(1);
    }
  }
  for (int at = 0; at < n; at++) send_message(connections[at]);
  signal(SIGTERM, end_soon);
  for (struct epoll_event events[256]; !stop;) {
    int ready = epoll_wait(epoll, events, 256, -1);
    for (int at = 0; at < ready; at++) {
      struct connection *c = events[at].data.ptr;
      take(c);
      if (c->have < 2 + MESSAGE) continue;
      if (c->have > 2 + MESSAGE || memcmp(c->in, "\x81 maskmask", 10)) { /* ' ' is 32 */
        fprintf(stderr, "load: what came is no echo\n");
        exit(1);
      }
      echoes++;
      send_message(c);
    }
  }
  printf("%llu\n", (unsigned long long)echoes);
}

static void be_idle(int n, const char *request_file) {
  size_t size = read_request(request_file);
  for (int at = 0; at < n; at++) {
    /* Each asks at once: a connection that says nothing for some seconds is closed by most proxies. */
    struct connection *c = open_connection();
    put(c, request, size);
    while (!whole(c)) {
      poll(&(struct pollfd){.fd = c->fd, .events = POLLIN}, 1, -1);
      take(c);
    }
  }
  puts("idle");
  fflush(stdout);
  for (;;) pause();
}

int main(int argc, char **argv) {
  if (argc == 8 && !strcmp(argv[1], "open")) {
    port = atoi(argv[2]);
    open_loop(atoi(argv[3]), atof(argv[4]), atof(argv[5]), strtoul(argv[6], NULL, 10), argv[7]);
  } else if (argc == 4 && !strcmp(argv[1], "websocket")) {
    port = atoi(argv[2]);
    websocket(atoi(argv[3]));
  } else if (argc == 5 && !strcmp(argv[1], "idle")) {
    port = atoi(argv[2]);
    be_idle(atoi(argv[3]), argv[4]);
  } else {
    return 2;
  }
}
