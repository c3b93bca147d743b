# Sourced by suites in Python.
# shellcheck shell=sh disable=SC2154  # $folder and $here are the script's

# A virtual environment in $folder/NAME/venv with these packages, made anew when the list has changed.
python_venv() { # name, packages...
    name=$1
    shift
    mkdir -p "$folder/$name"
    if [ "$(cat "$folder/$name/packages" 2>/dev/null)" = "$*" ]; then
        return 0
    fi
    rm -rf "$folder/$name/venv"
    python3 -m venv "$folder/$name/venv" ||
        { echo "python3 -m venv does not work: apt-get install python3-venv" >&2; exit 1; }
    "$folder/$name/venv/bin/pip" -q install --disable-pip-version-check "$@"
    echo "$*" > "$folder/$name/packages"
}

# A package's source from PyPI, unpacked as $folder/NAME/source.
python_source() { # name, package==version
    if [ "$(cat "$folder/$1/source.version" 2>/dev/null)" = "$2" ]; then
        return 0
    fi
    rm -rf "$folder/$1/source" "$folder/$1/sdist"
    "$folder/$1/venv/bin/pip" -q download --disable-pip-version-check --no-deps --no-binary "${2%%==*}" \
        -d "$folder/$1/sdist" "$2"
    mkdir -p "$folder/$1/source"
    tar -xf "$folder/$1/sdist"/*.tar.gz -C "$folder/$1/source" --strip-components=1
    echo "$2" > "$folder/$1/source.version"
}

# Runs pytest in the current folder, which is $results/work, and leaves the outcomes.
python_tests() { # name, arguments...
    python=$folder/$1/venv/bin/python
    shift
    status=0
    "$python" -m pytest -q -p no:cacheprovider --junitxml "$results/junit.xml" "$@" > "$results/log" 2>&1 || status=$?
    # 1: some tests failed.
    [ "$status" -le 1 ] || { tail -20 "$results/log" >&2; exit 1; }
    "$python" "$here/junit.py" "$results/junit.xml" > "$results/outcomes"
    cd "$results"
    rm -rf "$results/work"
}
