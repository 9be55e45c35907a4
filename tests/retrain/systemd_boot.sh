# A systemd of its own, as process 1 of new name spaces, on the programs of this machine: /usr is this machine's, read-only; all
# else is new and lies in memory. systemd_minutes.ts starts it:
#
#   unshare --mount --pid --ipc --uts --net --fork --kill-child sh systemd_boot.sh FOLDER PROGRAM UNITS
#
# FOLDER becomes /srv/metalora, PROGRAM /usr/local/bin/metalora, and everything in UNITS goes into /etc/systemd/system/.
set -eu
folder=$1 program=$2 units=$3
root=$folder.root # a mount point beside it

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"

# A control group for this systemd, so that it does not take the one that this shell is in apart.
mkdir "$root/cgroup"
mount -t cgroup2 cgroup2 "$root/cgroup"
group=$root/cgroup/metalora-test
mkdir -p "$group"
echo $$ >"$group/cgroup.procs"

cd "$root"
mkdir -p usr etc/systemd/system proc sys dev run srv/metalora tmp var/log var/lib var/tmp old
chmod 1777 tmp var/tmp
for name in bin sbin lib lib64; do
  if [ -L "/$name" ]; then cp -P "/$name" .; elif [ -d "/$name" ]; then mkdir "$name" && mount --rbind "/$name" "$name"; fi
done
mount --rbind /usr usr
mount -o remount,bind,ro usr
mount -t tmpfs -o mode=755 tmpfs usr/local
mkdir usr/local/bin
cp "$program" usr/local/bin/metalora
chmod 755 usr/local/bin/metalora
mount --bind "$folder" srv/metalora

cp /etc/ld.so.cache etc/
cat >etc/passwd <<EOF
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
metalora:x:64990:64990::/nonexistent:/usr/sbin/nologin
EOF
printf 'root:x:0:\nnogroup:x:65534:\nmetalora:x:64990:\n' >etc/group
printf 'passwd: files\ngroup: files\n' >etc/nsswitch.conf
echo 'ID=test' >etc/os-release
: >etc/machine-id
cp -r "$units/." etc/systemd/system/
chown -R 64990:64990 srv/metalora

# Read-only, so that this systemd sets nothing in the kernel that it shares with the machine.
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do
  : >"dev/$name"
  mount --bind "/dev/$name" "dev/$name"
done
ln -s /proc/self/fd dev/fd
mkdir dev/shm
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
umount cgroup

# The control group's own name space begins at the group that this shell is in now.
exec unshare --cgroup sh -euc '
  mount -t cgroup2 cgroup2 sys/fs/cgroup
  pivot_root . old
  exec chroot . sh -euc "
    umount -l /old
    exec env -i container=metalora-test PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin \
      /lib/systemd/systemd --system --unit=basic.target --show-status=false --log-target=null"'
