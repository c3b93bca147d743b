#!/bin/sh
# The regression tests of PostgreSQL's own extensions, and of PL/pgSQL.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/suites/regress.sh
. "$here/regress.sh"

fetch() {
    "$here/../conformance/fetch.sh" "$folder/postgresql"
    cat "$folder/postgresql/.version" > "$folder/contrib.version"
}

selection="hstore citext ltree pg_trgm tablefunc intarray unaccent pgcrypto btree_gist plpgsql"

# A variable of a module's Makefile, which is read without what it includes.
of_makefile() { # module, variable
    make -s -C "$1" USE_PGXS=1 PG_CONFIG=true PGXS=/dev/null subdir="$1" top_builddir="$results/work/make" \
        top_srcdir="$results/work/make" \
        --eval 'tell: ; @echo "$('"$2"')"' tell 2>/dev/null
}

# Modules whose tests need no configuration of their own and whose extension is installed.
modules() {
    for makefile in */Makefile; do
        module=${makefile%/Makefile}
        case $module in *_plperl | *_plpython*) continue ;; esac
        [ -n "$(of_makefile "$module" REGRESS)" ] && [ -z "$(of_makefile "$module" NO_INSTALLCHECK)" ] || continue
        extensions=$(of_makefile "$module" EXTENSION)
        for extension in ${extensions:-plpgsql}; do
            [ -e "$share/$extension.control" ] && echo "$module" && break
        done
    done
}

run() {
    cp -r "$folder/postgresql/contrib" "$results/work"
    cp "$folder/postgresql/suite/regress.so" "$results/work/"
    cd "$results/work"
    mkdir -p make/src
    : > make/src/Makefile.global
    : > make/src/Makefile.shlib
    driver=$(cat "$folder/postgresql/pg_regress")
    version=${driver#/usr/lib/postgresql/}
    share=/usr/share/postgresql/${version%%/*}/extension
    case $tests in
        all) tests=$(modules) ;;
        selection) tests=$selection ;;
    esac
    : > "$results/outcomes"
    for module in $tests; do
        status=0
        # Servers write here as PostgreSQL's OS user.
        mkdir -m 777 "$module/results"
        (
            cd "$module"
            # shellcheck disable=SC2046  # lists of words
            "$driver" --inputdir . --outputdir . --bindir "" --dbname contrib_regression --encoding UTF8 \
                --dlpath "$results/work" --host "$PGHOST" --port "$PGPORT" --user "$PGUSER" \
                $(of_makefile . REGRESS)
        ) > "$results/$module.log" 2>&1 || status=$?
        regress_ran "$status" "$results/$module.log"
        regress_outcomes "$results/$module.log" "$module/" >> "$results/outcomes"
        mkdir -p "$results/$module"
        mv "$module"/results/*.out "$results/$module/"
    done
    cd "$results"
    rm -rf "$results/work"
}

. "$here/main.sh"
