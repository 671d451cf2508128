/* A bare TCP relay: what is left of a proxy that understands nothing. Bytes are read and written, nothing more; one
 * connection to the app for each of the client's. One thread, epoll, edge-triggered.
 *
 *   relay LISTEN_PORT APP_PORT */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FDS = 65536, BUFFER = 64 * 1024 };

static struct end {
  int peer;
  char *held;  /* what the peer didn't take yet; while there is some, nothing more is read */
  size_t from, left;
} ends[MAX_FDS];
static char buffer[BUFFER];

static void finish(int fd) {
  int both[2] = {fd, ends[fd].peer};
  for (int at = 0; at < 2; at++) {
    free(ends[both[at]].held);
    ends[both[at]] = (struct end){.peer = -1};
    close(both[at]);
  }
}

/* From `fd` to its peer, until one of them would wait. Returns -1 when both are closed. */
static int pass(int fd) {
  struct end *end = &ends[fd];
  for (;;) {
    while (end->left) {
      ssize_t n = send(end->peer, end->held + end->from, end->left, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && errno == EAGAIN) return 0;
      if (n < 0) return finish(fd), -1;
      end->from += n;
      end->left -= n;
    }
    ssize_t got = recv(fd, buffer, BUFFER, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) return finish(fd), -1;
    ssize_t n = send(end->peer, buffer, got, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN) return finish(fd), -1;
    if (n < 0) n = 0;
    if (n < got) {
      if (!end->held && !(end->held = malloc(BUFFER))) exit(1);
      memcpy(end->held, buffer + n, end->left = got - n);
      end->from = 0;
    } else if (got < BUFFER) {
      return 0;
    }
  }
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  address.sin_port = htons(atoi(argv[1]));
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) return perror("listen"), 1;
  address.sin_port = htons(atoi(argv[2]));
  int epoll = epoll_create1(0);
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
  for (struct epoll_event events[256];;) {
    int n = epoll_wait(epoll, events, 256, -1);
    for (int at = 0; at < n; at++) {
      int fd = events[at].data.fd;
      if (fd == listener) {
        int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (client < 0) continue;
        int app = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (client >= MAX_FDS || app < 0 || app >= MAX_FDS) return 1;
        if (connect(app, (void *)&address, sizeof address) && errno != EINPROGRESS) return perror("connect"), 1;
        ends[client] = (struct end){.peer = app};
        ends[app] = (struct end){.peer = client};
        for (int side = 0; side < 2; side++) {
          int its = side ? app : client;
          setsockopt(its, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
          epoll_ctl(epoll, EPOLL_CTL_ADD, its,
                    &(struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.fd = its});
        }
        continue;
      }
      /* A pair may have been closed by an earlier event of this turn. */
      if (ends[fd].peer < 0) continue;
      if (events[at].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && pass(fd) < 0) continue;
      /* Writable is said with every edge, and means something only to bytes that wait. */
      if (events[at].events & EPOLLOUT && ends[ends[fd].peer].left) pass(ends[fd].peer);
    }
  }
}
