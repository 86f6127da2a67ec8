# enter.sh ROOT USER COMMAND VARIABLES [PATH …]
# Runs a shell command in a root as this user, with what a running system has there. `unshare` starts it as PID 1 of namespaces of its own:
# what it mounts and what it starts ends with it. VARIABLES are words NAME=VALUE, one a line; each PATH of this machine can be read there,
# below /run/host.
set -eu
root=$1 user=$2 command=$3 variables=$4
shift 4

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  : > "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

show() { # PATH TARGET
  if [ -d "$1" ]; then
    mkdir -p "$2"
  else
    mkdir -p "${2%/*}"
    [ -e "$2" ] || : > "$2"
  fi
  mount --bind "$1" "$2"
  mount -o remount,bind,ro "$2"
}
show /etc/hosts "$root/etc/hosts"
show /etc/resolv.conf "$root/etc/resolv.conf"
for path; do
  show "$path" "$root/run/host$path"
done

home=/home/$user
[ "$user" = root ] && home=/root
set -- "HOME=$home" "USER=$user" "LOGNAME=$user" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
while IFS= read -r variable; do
  [ -z "$variable" ] || set -- "$@" "$variable"
done <<END
$variables
END
# No exec: PID 1 has to reap what its children leave behind.
chroot --userspec="$user:" "$root" env -i "$@" sh -c "cd && $command"
