#!/bin/sh
# Brings PostgreSQL's own regression suite, of the installed version, into a folder: from Debian's
# source package, through apt with lists and a cache of its own, so that the system's sources stay
# as they are. Also builds the suite's C functions and the tests of pipelines against the headers of that version.
#
#   fetch.sh FOLDER        leaves FOLDER/suite and the driver's path in FOLDER/pg_regress
set -eu

folder=${1:?usage: fetch.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# The newest PostgreSQL that is installed: what the lab runs.
version=$(basename "$(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -n | tail -1)")
package=$(dpkg-query -W -f '${Version}' "postgresql-$version")
driver=/usr/lib/postgresql/$version/lib/pgxs/src/test/regress/pg_regress
[ -x "$driver" ] || { echo "$driver is missing: apt-get install postgresql-client-$version" >&2; exit 1; }
echo "$driver" > "$folder/pg_regress"
if [ "$(cat "$folder/suite/.version" 2>/dev/null)" = "$package" ] && [ -x "$folder/suite/libpq_pipeline" ]; then
    exit 0
fi

echo "fetching the source of postgresql-$version $package"
apt=$folder/apt
rm -rf "$apt" "$folder/suite"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/unpacked"
# The system's own places, asked for sources too.
find /etc/apt/sources.list /etc/apt/sources.list.d -name '*.list' -type f -exec cat {} + 2>/dev/null |
    sed -n 's/^deb \(.*\)/deb \1\ndeb-src \1/p' | grep debian > "$apt/sources.list" || true
for file in /etc/apt/sources.list.d/*.sources; do
    [ -f "$file" ] || continue
    grep -qi debian "$file" || continue
    sed 's/^Types:.*/Types: deb deb-src/' "$file"
    echo
done > "$apt/debian.sources"
mkdir "$apt/parts"
mv "$apt/debian.sources" "$apt/parts/"

private() {
    tool=$1
    shift
    "$tool" -q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts="$apt/parts" \
        -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User="$(id -un)" "$@"
}
cd "$apt"
private apt-get update
private apt-get source --download-only "postgresql-$version=$package"
private apt-get download "postgresql-server-dev-$version=$package" libpq-dev

tar -xf postgresql-*.orig.tar.* --strip-components=1 --wildcards '*/src/test/regress' '*/src/test/modules/libpq_pipeline'
dpkg -x "postgresql-server-dev-$version"_*.deb unpacked
dpkg -x libpq-dev_*.deb unpacked
cc -O1 -fPIC -shared -I "unpacked/usr/include/postgresql/$version/server" \
    -o src/test/regress/regress.so src/test/regress/regress.c
cc -O1 -I "unpacked/usr/include/postgresql/$version/server" -I unpacked/usr/include/postgresql \
    -o src/test/regress/libpq_pipeline src/test/modules/libpq_pipeline/libpq_pipeline.c \
    -L "unpacked/usr/lib/postgresql/$version/lib" -l:libpq.so.5 -lpgcommon -lpgport -lm
# Two more libraries are looked for beside it.
cp "/usr/lib/postgresql/$version/lib/autoinc.so" "/usr/lib/postgresql/$version/lib/refint.so" src/test/regress/
echo "$package" > src/test/regress/.version
mv src/test/regress "$folder/suite"
cd "$folder"
rm -rf "$apt"
