#!/bin/sh
# A CNI plugin for tests, called through symbolic links: notes each call in `log` beside the link, keeps what it
# got on stdin, prints `NAME.result` for an ADD, and fails with what is in `NAME.fail` if that exists.
directory=${0%/*}
name=${0##*/}
echo "$CNI_COMMAND $name id=$CNI_CONTAINERID netns=$CNI_NETNS if=$CNI_IFNAME args=$CNI_ARGS" >>"$directory/log"
cat >"$directory/$name.$CNI_COMMAND.stdin"
if [ -e "$directory/$name.fail" ]; then
    cat "$directory/$name.fail"
    exit 1
fi
case $CNI_COMMAND in
ADD) cat "$directory/$name.result" 2>/dev/null ;;
VERSION) cat "$directory/$name.versions" ;;
esac
exit 0
