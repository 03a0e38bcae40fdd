/* The version is that of no kernel: it decides nothing here, but bcc asks. */
#define KERNEL_VERSION(a, b, c) ((a)*65536 + (b)*256 + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 18, 0)
