/* Holds a pod's namespaces until SIGTERM or SIGINT. As the first process of a shared process namespace it also reaps. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0) {} }

int main(void) {
  struct sigaction on_leave = {.sa_handler = leave};
  struct sigaction on_child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP | SA_RESTART};
  sigaction(SIGINT, &on_leave, 0);
  sigaction(SIGTERM, &on_leave, 0);
  sigaction(SIGCHLD, &on_child, 0);
  for (;;) pause();
}
