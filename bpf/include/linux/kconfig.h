/* bcc includes it by force, and asks it whether there is BPF. */
#define CONFIG_BPF_SYSCALL 1
