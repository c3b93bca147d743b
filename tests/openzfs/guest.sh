# Runs in the guest.
echo "MANATEE: begin"
modprobe zfs
zfs version
cd /tests
failed=0
for test in storage::conformance::zfs_conforms rejoin::ladder::every_rung; do
    RUST_BACKTRACE=0 ./tests "$test" --nocapture 2>&1 || failed=1
done
[ "$failed" = 0 ] && echo "MANATEE: passed" || echo "MANATEE: failed"
