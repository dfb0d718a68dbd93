#!/bin/sh
# Boots a real systemd with the units of deploy/, as root: sh tests/boot/boot.sh
#
# It needs systemd, openssl, iproute2, and triojam in /opt/triojam (deploy/README.md). systemd runs in namespaces
# of its own, on an overlay of this machine: what it writes is gone at the end. checks.sh is its only job.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)

if [ "${1:-}" != inside ]; then
    work=$(mktemp -d)
    groups=
    # The namespace of cgroups begins at the group in which it is made.
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
        [ -e "$hierarchy/cgroup.procs" ] || continue
        mkdir -p "$hierarchy/triojam-boot"
        groups="$groups $hierarchy/triojam-boot"
    done
    (
        # The shell of these parentheses, which becomes unshare.
        for each in $groups; do sh -c 'echo $PPID' >"$each/cgroup.procs"; done
        exec unshare --mount --pid --net --ipc --uts --cgroup --fork sh "$here/boot.sh" inside "$work"
    ) || true  # systemd ends by a signal
    cat "$work/out/log"
    status=1
    grep -qx passed "$work/out/log" && status=0
    rm -r "$work"
    for each in $groups; do find "$each" -depth -type d -exec rmdir {} + || true; done
    exit $status
fi

work=$2
root=$work/root
mount --make-rprivate /
mkdir "$root" "$work/written" "$work/out"
mount -t tmpfs tmpfs "$work/written"
mkdir "$work/written/upper" "$work/written/work"
mount -t overlay -o "lowerdir=/,upperdir=$work/written/upper,workdir=$work/written/work" overlay "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs sysfs sys
for each in run tmp dev sys/fs/cgroup; do mount -t tmpfs tmpfs "$each"; done
if [ -e /sys/fs/cgroup/cgroup.procs ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mkdir sys/fs/cgroup/systemd sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
fi
for each in null zero full random urandom tty; do cp -a "/dev/$each" dev/; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /out/console dev/console
: >"$work/out/console"

mkdir -p out old
mount --bind "$work/out" out
# Only the units of triojam, and nothing that belongs to the machine.
rm -rf etc/systemd/system etc/triojam
mkdir -p etc/systemd/system etc/triojam
: >etc/fstab
echo uninitialized >etc/machine-id
for each in journald udevd udev-trigger networkd resolved timesyncd remount-fs firstboot sysusers modules-load random-seed; do
    ln -s /dev/null "etc/systemd/system/systemd-$each.service"
done
ln -s /dev/null etc/systemd/system/systemd-journald.socket
cp "$repository/deploy/triojam.service" "$repository/deploy/triojam.socket" etc/systemd/system/
cp "$here/checks.sh" out/
cat >etc/systemd/system/checks.service <<UNIT
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh /out/checks.sh
TimeoutStartSec=5min
StandardOutput=append:/out/log
StandardError=append:/out/log
ExecStopPost=/bin/systemctl poweroff -ff
UNIT
pivot_root . old
cd /
# Mounts such as those of credentials must reach the services.
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c \
    'umount -l /old; mount --make-rshared /; exec /lib/systemd/systemd --system --unit=checks.service --log-target=console'
