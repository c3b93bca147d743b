#!/bin/sh
# asyncpg's own tests.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/suites/python.sh
. "$here/python.sh"

version=0.32.0

fetch() {
    python_venv asyncpg "asyncpg==$version" distro==1.9.0 pytest==8.4.2
    python_source asyncpg "asyncpg==$version"
    echo "asyncpg $version" > "$folder/asyncpg.version"
}

run() {
    # Of the package itself only the tests: it is built in the environment.
    mkdir "$results/work"
    cp -r "$folder/asyncpg/source/tests" "$results/work/"
    cd "$results/work"
    case $tests in
        # The source's style, and the documents' examples, need no server.
        all) set -- tests --ignore tests/test__sourcecode.py ;;
        selection) set -- tests/test_cache_invalidation.py tests/test_prepare.py tests/test_transaction.py ;;
        *)
            # shellcheck disable=SC2086  # a list of words
            set -- $tests
            ;;
    esac
    python_tests asyncpg "$@"
}

. "$here/main.sh"
