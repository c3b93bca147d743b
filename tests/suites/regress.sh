# Sourced by the suites that PostgreSQL's own drivers run: pg_regress and its like.
# shellcheck shell=sh

# The outcomes that a driver printed, as lines of `name<TAB>outcome`, names behind a prefix.
regress_outcomes() { # log, prefix
    # "test NAME ... ok 12 ms" and "    NAME ... FAILED" up to PostgreSQL 15; "ok 1 - NAME 12 ms" later.
    sed -n -e "s|^test  *\([^ ][^ ]*\)  *\.\.\. ok .*|$2\1\tok|p" \
        -e "s|^test  *\([^ ][^ ]*\)  *\.\.\. FAILED.*|$2\1\tfailed|p" \
        -e "s|^     *\([^ ][^ ]*\)  *\.\.\. ok .*|$2\1\tok|p" \
        -e "s|^     *\([^ ][^ ]*\)  *\.\.\. FAILED.*|$2\1\tfailed|p" \
        -e "s|^ok [0-9]*  *[-+] \([^ ][^ ]*\) .*|$2\1\tok|p" \
        -e "s|^not ok [0-9]*  *[-+] \([^ ][^ ]*\) .*|$2\1\tfailed|p" "$1"
}

# A driver that could not run its tests ends with 2 and more.
regress_ran() { # status, log
    [ "$1" -le 1 ] || { tail -20 "$2" >&2; exit 1; }
}
