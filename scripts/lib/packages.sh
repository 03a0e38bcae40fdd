# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use them
# The Debian packages that lbdr and its tests need beyond a minimal system, and why.

director_packages=(
    ca-certificates # pip's https
    iproute2        # the lab's namespaces and links
    kmod            # loads ip_vs
    python3
    python3-bpfcc # compiles the fast path's programs
    python3-venv
)
test_packages=(
    arping           # asks who has the VIP, as a witness of its own
    clang-format     # C is formatted by it
    dcmtk            # DICOM peers of health checks
    dnsmasq-base     # a resolver
    ethtool          # offloads of the test links
    git              # which files are the project's
    haproxy          # HTTP peers of health checks, and what lbdr/haproxy renders for
    ipvsadm          # reads back what lbdr wrote
    openssl          # certificates of peers
    python3-aiosmtpd # a mail server
    shellcheck
    slapd            # a directory
    systemd          # runs the unit, in a container in the guest
    tcpdump
    wrk              # HTTP load, for the benchmark
)
qemu_packages=(
    busybox-static # the initramfs
    kmod           # which modules it needs
    qemu-system-x86
)
fresh_packages=(
    debootstrap
    git
)
