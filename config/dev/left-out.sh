#!/bin/sh
# Says which tests this machine left out, for they pass without a word.
[ "$(id -u)" = 0 ] || echo "LEFT OUT: all on ZFS, because it needs root"
if [ "$(id -u)" = 0 ] && [ ! -e /dev/fuse ] && ! PATH="$PATH:/usr/sbin:/sbin" zfs list >/dev/null 2>&1; then
    echo "LEFT OUT: all on ZFS, because this machine has neither OpenZFS nor /dev/fuse (modprobe fuse)"
fi
exit 0
