#!/bin/sh
# Plays the sending host for a Halted VM, with curl and qemu-img alone.
#
#   send-halted-vm.sh URI METADATA IMAGE...
#
# URI       one of those that VM.receive answered; "-" reads it from standard input, which keeps it out of
#           process lists: who knows it may act on this migration
# METADATA  the VM's metadata, such as halted-vm.xml in this folder
# IMAGE...  raw disk images, in the order of the disks in METADATA
#
# Ends with 0 when the VM is at the receiver; with 3 when nobody has said so yet: the VM must not be started anywhere
# before the receiver has been asked again. With anything else the receiver has given it up, or never heard of it.
set -eu
umask 077

[ $# -ge 2 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
uri=$1 metadata=$2
shift 2
[ "$uri" != - ] || read -r uri
case $uri in *'#'*) echo "curl cannot check the certificate that is pinned in this URI: take another" >&2; exit 2 ;; esac

scratch=$(mktemp -d)
copy='' stage=nothing

leave() {
    if [ -n "$copy" ]; then
        kill "$copy" 2>/dev/null || :
        wait "$copy" || :
    fi
    rm -rf "$scratch"
    case $stage in
    # Before `done` the sender may give up: one DELETE aborts, and acknowledges it.
    begun) ask DELETE '' --header 'Acknowledge: aborted' >/dev/null || : ;;
    in-doubt) echo "in doubt: ask the receiver again (GET control) before this VM is started" >&2; exit 3 ;;
    esac
}
trap leave EXIT
trap 'exit 1' HUP INT TERM

# ask METHOD PATH [OPTION...]: the answer's body. Every request may be repeated, so curl may. The URI comes to curl
# through a pipe, not among its arguments.
ask() {
    method=$1 path=$2
    shift 2
    printf 'url = "%s%s"\n' "$uri" "$path" |
        curl --config - --silent --show-error --fail-with-body --retry 3 --retry-connrefused --request "$method" "$@" ||
        { echo "$method ${path:-.} was refused" >&2; return 1; }
}

# field NAME: that member of the JSON object on standard input
field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p"; }

# 1.5  Does the receiver answer?
ask HEAD '' --head >/dev/null

# 2.1  The VM's metadata: the receiver creates a hidden VM and its disks.
stage=begun
# While others come before, it says how many (202): the same is sent again until VM and disks are there.
behind=unknown
while [ -n "$behind" ]; do
    answer=$(ask PUT /metadata --upload-file "$metadata")
    behind=$(echo "$answer" | field behind)
    [ -z "$behind" ] || sleep 1
done

number=0
for image; do
    # 2.2  Where does this disk go? iscsi://PORTAL/TARGET/LUN, and an account for it.
    disk=$(ask GET "/disk/$number")
    url=$(echo "$disk" | field url)
    if [ "$(echo "$disk" | field found)" = true ]; then
        echo "disk $number is at the receiver already, and this script cannot prove that it is the same" >&2
        exit 1
    fi
    # qemu-img reads the password from a file; printf is part of the shell, so no process list shows it.
    printf %s "$(echo "$disk" | field password)" >"$scratch/password"
    lun=${url##*/} rest=${url#iscsi://}
    portal=${rest%%/*} target=${rest#*/}
    target=${target%/*}

    # 3.1  Copy it. The LUN reads as zeroes, so holes stay holes; "writeback" has it flushed at the end.
    qemu-img convert -n --target-is-zero -t writeback -f raw --object "secret,id=chap,file=$scratch/password" \
        --target-image-opts "$image" "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=$portal,\
file.target=$target,file.lun=$lun,file.user=$(echo "$disk" | field username),file.password-secret=chap" &
    copy=$!
    # A receiver that hears nothing for long gives up.
    while kill -0 "$copy" 2>/dev/null; do
        ask HEAD '' --head >/dev/null
        sleep 1
    done
    wait "$copy"
    copy=''
    number=$((number + 1))
done

# 4.4  Nothing runs and nothing writes: all copies are equal, flushed and closed. (A running VM's memory would have
#      gone before, 4.1 to 4.3.)

# 5.1  From here on the receiver alone decides, and what it has decided is what GET control says.
stage=in-doubt
ask PUT /control --data-raw 'done' >/dev/null || :
outcome=$(ask GET /control | field outcome)
case $outcome in
committed | aborted) stage=decided ;;
*) exit 3 ;;
esac

# The acknowledgement: the receiver may forget the migration.
ask DELETE '' --header "Acknowledge: $outcome" >/dev/null || :
echo "$outcome"
[ "$outcome" = committed ]
