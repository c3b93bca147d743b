#!/bin/sh
# Brings PostgreSQL's own test suites, of the installed version, into a folder: from Debian's source package. Also
# builds the regression suite's C functions, the tests of pipelines and the tester of isolation against the headers of
# that version.
#
#   fetch.sh FOLDER        leaves FOLDER/suite, FOLDER/isolation, FOLDER/contrib and the driver's path in FOLDER/pg_regress
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
if [ "$(cat "$folder/.version" 2>/dev/null)" = "$package" ]; then
    exit 0
fi

echo "fetching the source of postgresql-$version $package"
apt=$folder/apt
rm -rf "$folder/suite" "$folder/isolation" "$folder/contrib"
# shellcheck source=tests/suites/apt.sh
. "$(dirname "$0")/../suites/apt.sh"
cd "$apt"
private apt-get source --download-only "postgresql-$version=$package" &&
    private apt-get download "postgresql-server-dev-$version=$package" libpq-dev || {
    # What is installed was replaced in the archive by a newer minor version.
    echo "postgresql-$version $package is offered no more: taking the newest one's tests" >&2
    rm -f postgresql-*
    private apt-get source --download-only "postgresql-$version"
    private apt-get download "postgresql-server-dev-$version" libpq-dev
}

tar -xf postgresql-*.orig.tar.* --strip-components=1 --wildcards '*/src/test/regress' '*/src/test/isolation' \
    '*/src/test/modules/libpq_pipeline' '*/contrib' '*/src/pl/plpgsql/src'
dpkg -x "postgresql-server-dev-$version"_*.deb unpacked
dpkg -x libpq-dev_*.deb unpacked
headers="-I unpacked/usr/include/postgresql/$version/server -I unpacked/usr/include/postgresql -I unpacked/usr/include/postgresql/internal"
libraries="-L unpacked/usr/lib/postgresql/$version/lib -l:libpq.so.5 -lpgcommon -lpgport -lm"
# shellcheck disable=SC2086  # lists of words
{
    cc -O1 -fPIC -shared $headers -o src/test/regress/regress.so src/test/regress/regress.c
    cc -O1 $headers -o src/test/regress/libpq_pipeline src/test/modules/libpq_pipeline/libpq_pipeline.c $libraries
}
# Two more libraries are looked for beside it.
cp "/usr/lib/postgresql/$version/lib/autoinc.so" "/usr/lib/postgresql/$version/lib/refint.so" src/test/regress/

# The tester of isolation asks whether one of its sessions waits for another by the process ids that they were told at
# their start. Sessions that share servers have others by then, so that it is built to look for the name by which each
# of its sessions calls itself, in both runs.
tester=src/test/isolation/isolationtester.c
sed -i -e 's|^\(\s*conns\[i\]\.backend_pid_str = \).*|\1pg_strdup(PQparameterStatus(conns[i].conn, "application_name"));|' \
    -e 's|PREP_WAITING, wait_query\.data,|PREP_WAITING, IS_BLOCKED,|' "$tester"
[ "$(grep -c '"application_name"));\|PREP_WAITING, IS_BLOCKED,' "$tester")" = 2 ] ||
    { echo "isolationtester.c of PostgreSQL $package is another one than this script knows" >&2; exit 1; }
is_blocked="SELECT coalesce(bool_or(pg_catalog.pg_isolation_test_session_is_blocked(a.pid, (SELECT array_agg(b.pid)
    FROM pg_stat_activity b WHERE b.application_name LIKE 'isolation/%'))), false)
    FROM pg_stat_activity a WHERE a.application_name = \$1"
# shellcheck disable=SC2086  # lists of words
cc -O1 $headers -I src/test/isolation "-DIS_BLOCKED=\"$(echo "$is_blocked" | tr -s '\n ' '  ')\"" \
    -o src/test/isolation/isolationtester "$tester" src/test/isolation/specparse.c $libraries
# The driver looks for the tester in its own folder.
cp "${driver%/*/*}/isolation/pg_isolation_regress" src/test/isolation/

mv src/test/regress "$folder/suite"
mv src/test/isolation "$folder/isolation"
mv src/pl/plpgsql/src contrib/plpgsql
mv contrib "$folder/contrib"
cd "$folder"
rm -rf "$apt"
echo "$package" > "$folder/.version"
