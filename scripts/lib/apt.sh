# shellcheck shell=bash
# shellcheck disable=SC2154 # cache is common.sh's
# Debian packages: install them, or only unpack one into the project's cache. Needs common.sh.

# As root, apt would complain that its unprivileged user cannot write where we download to.
apt_options=(-qq -o DPkg::Lock::Timeout=120)
[[ $EUID -ne 0 ]] || apt_options+=(-o APT::Sandbox::User=root)

# Say whether apt's lists know PACKAGE; a machine that never ran `apt-get update` knows none.
apt_knows() { [[ -n $(apt-cache show --no-all-versions "$1" 2>/dev/null | head -n 1) ]]; }

# Print those of the PACKAGEs that are not installed.
apt_missing() {
    local package
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            printf '%s\n' "$package"
    done
}

apt_update() {
    say 'fetching the package lists (apt-get update)'
    quietly apt apt-get "${apt_options[@]}" update ||
        die 'apt-get update failed: check /etc/apt/sources.list* and the network, then try again'
}

# Install the PACKAGEs that are missing. The lists are fetched when they lack a package, and once
# more when a download fails, since old lists name versions that the archive no longer has.
apt_install() {
    local missing package
    mapfile -t missing < <(apt_missing "$@")
    ((${#missing[@]})) || return 0
    [[ $EUID -eq 0 ]] || die "Debian packages are missing (${missing[*]}); run it with sudo"
    say "installing Debian packages: ${missing[*]}"
    for package in "${missing[@]}"; do
        apt_knows "$package" || { apt_update && break; }
    done
    apt_install_now "${missing[@]}" || { apt_update && apt_install_now "${missing[@]}"; } ||
        die 'apt-get install failed: its message is above; mend it and run this again'
}

apt_install_now() {
    quietly apt env DEBIAN_FRONTEND=noninteractive apt-get "${apt_options[@]}" -o Dpkg::Use-Pty=0 \
        install --yes --no-install-recommends "$@"
}

# apt_unpack PACKAGE DIRECTORY [COMMAND...]: unpack a package, without installing it, unless it is
# there; COMMAND with the unpacked directory as its last argument completes it. Two scripts may do
# this at once: each waits for the lock, and the directory appears whole by a rename.
apt_unpack() {
    local package=$1 directory=$2 lock fresh
    shift 2
    [[ ! -d $directory ]] || return 0
    writable_cache
    exec {lock}>"$directory.lock"
    flock "$lock"
    if [[ ! -d $directory ]]; then
        say "fetching the Debian package $package (once)"
        fresh=$(mktemp -d "$directory.XXXXXX")
        if ! apt_download "$package" "$fresh" || ! dpkg -x "$fresh"/*.deb "$fresh/root" ||
            { (($#)) && ! "$@" "$fresh/root"; }; then
            rm -rf "$fresh"
            die "cannot fetch or unpack the Debian package $package: the message is above"
        fi
        mv -T "$fresh/root" "$directory"
        rm -rf "$fresh"
        hand_over
    fi
    exec {lock}>&-
}

apt_download() (
    cd "$2" || exit
    apt_knows "$1" || apt_update
    quietly apt apt-get "${apt_options[@]}" download "$1" ||
        { apt_update && quietly apt apt-get "${apt_options[@]}" download "$1"; }
)
