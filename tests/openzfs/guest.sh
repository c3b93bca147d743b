# Runs in the guest.
# The console begins with what a terminal would take for orders.
echo
echo "MANATEE: begin"
export MANATEE_TEST_PATIENCE=900
modprobe zfs
zfs version
cd /tests
failed=0
# Without ZFS tests are left out, and a name that none has selects none: both would pass without a word.
for test in $(cat list); do
    ./tests --exact "$test" --nocapture 2>&1 | tee output
    if grep -q 'left out' output || ! grep -q '^test result: ok\. 1 passed' output; then
        echo "MANATEE: $test did not pass"
        failed=1
    fi
done
[ "$failed" = 0 ] && echo "MANATEE: passed" || echo "MANATEE: failed"
