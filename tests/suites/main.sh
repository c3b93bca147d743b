# Sourced at the end of each suite's script, which defines `fetch` and `run`:
#
#   SUITE.sh fetch FOLDER                   brings what the suite needs into FOLDER, and leaves its versions in
#                                           FOLDER/SUITE.version
#   SUITE.sh run FOLDER RESULTS TEST...     runs the tests (`all`, `selection`, or their names) against the server of
#                                           PGHOST, PGPORT, PGUSER, PGPASSWORD; leaves lines of `name<TAB>outcome` in
#                                           RESULTS/outcomes and, where outcomes alone do not tell, RESULTS/NAME.out
# shellcheck shell=sh disable=SC2034,SC2154  # read by the script that sources this

usage() {
    echo "usage: $0 fetch FOLDER | run FOLDER RESULTS TEST..." >&2
    exit 2
}
[ "$#" -ge 2 ] || usage
action=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
case $action in
    fetch) fetch ;;
    run)
        [ "$#" -ge 4 ] || usage
        results=$3
        shift 3
        tests=$*
        run
        ;;
    *) usage ;;
esac
