# Sourced: apt with lists and a cache of its own, in the folder $apt, which also knows Debian's source packages. The
# system's sources stay as they are, and nothing is installed.
# shellcheck shell=sh

rm -rf "$apt"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts" "$apt/unpacked"

# The system's own places, asked for sources too.
apt_places() {
    find /etc/apt/sources.list /etc/apt/sources.list.d -name '*.list' -type f -exec cat {} + 2>/dev/null |
        sed -n 's/^deb \(.*\)/deb \1\ndeb-src \1/p' | grep debian > "$apt/sources.list" || true
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        grep -qi debian "$file" || continue
        sed 's/^Types:.*/Types: deb deb-src/' "$file"
        echo
    done > "$apt/parts/debian.sources"
}

private() {
    tool=$1
    shift
    "$tool" -q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts="$apt/parts" \
        -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User="$(id -un)" "$@"
}

apt_places
private apt-get update
