//! A program that is killed on such a machine, and what is left of its files.

use std::collections::BTreeSet;
use std::fs;

use super::*;

/// Leaves behind: bytes that a sync covers and bytes over them that none does, a file whose name is not synced, and a file that is
/// replaced by another under its name; and bytes of a sync that failed, half of them written again and synced.
const PROGRAM: &str = r#"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void put(const char *name, char byte, int len, int at) {
    char bytes[8192];
    memset(bytes, byte, sizeof bytes);
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || pwrite(fd, bytes, len, at) != len) abort();
    close(fd);
}
static void sync_of(const char *name) {
    int fd = open(name, O_RDONLY);
    if (fd < 0 || fsync(fd) != 0) abort();
    close(fd);
}
static void fail_a_sync_of(const char *name) {
    int control = open(getenv("SHIM_CONTROL"), O_RDWR), one = 1;
    if (control < 0 || pwrite(control, &one, sizeof one, 20) != sizeof one) abort();
    int fd = open(name, O_RDONLY);
    if (fd < 0 || fsync(fd) == 0) abort();
    close(fd);
}
int main(int count, char **arguments) {
    if (count != 2 || mkdir(arguments[1], 0700) != 0 || chdir(arguments[1]) != 0) abort();
    put("bytes", 'a', 8192, 0);
    put("replaced", 'a', 4096, 0);
    put("failed", 'a', 4096, 0);
    sync_of("failed");
    sync_of("bytes");
    sync_of("replaced");
    sync_of(".");
    put("bytes", 'b', 4096, 0);
    put("bytes", 'c', 4096, 8192);
    put("new", 'b', 4096, 0);
    sync_of("new");
    rename("new", "replaced");
    put("failed", 'b', 4096, 0);
    fail_a_sync_of("failed");
    put("failed", 'c', 2048, 0);
    sync_of("failed");
    put("named", 'a', 1, 0);
    sync_of("named");
    raise(SIGKILL);
}
"#;

fn compile_program(dir: &Path) -> PathBuf {
    let (source, program) = (dir.join("program.c"), dir.join("program"));
    fs::write(&source, format!("#include <sys/stat.h>\n{PROGRAM}")).unwrap();
    assert!(Command::new("cc").arg("-o").arg(&program).arg(&source).status().unwrap().success());
    program
}

/// The letters of the pieces of a file.
fn letters(bytes: &[u8]) -> String {
    let pieces = bytes.chunks(512).map(|piece| {
        assert!(piece.iter().all(|byte| *byte == piece[0]), "a piece is whole");
        if piece[0] == 0 { '-' } else { char::from(piece[0]) }
    });
    pieces.collect()
}

#[test]
fn what_a_sync_covered_stays_and_the_rest_may_go_in_any_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let Some(machines) = Machines::make(dir.path(), 1).unwrap() else {
        eprintln!("skipped: there is no C compiler");
        return;
    };
    let program = compile_program(dir.path());
    let launcher = machines.place(0, Place::default()).launcher;
    let data_dir = dir.path().join("n1");
    let mut seen = [const { BTreeSet::new() }; 5];
    for seed in 0..60 {
        let ended =
            Command::new(&launcher[0]).args(&launcher[1..]).arg(&program).arg(&data_dir).status().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
        machines.of(0).lose_power(&mut Random::new(seed, 0)).unwrap();

        let bytes = letters(&fs::read(data_dir.join("bytes")).unwrap());
        assert_eq!(&bytes[8..16], "aaaaaaaa", "seed {seed}: a sync covered them");
        assert!(bytes[..8].chars().all(|letter| "ab".contains(letter)), "seed {seed}: {bytes}");
        assert!(bytes[16..].chars().all(|letter| "-c".contains(letter)), "seed {seed}: {bytes}");
        let replaced = letters(&fs::read(data_dir.join("replaced")).unwrap());
        assert!(["aaaaaaaa", "bbbbbbbb"].contains(&replaced.as_str()), "seed {seed}: {replaced}");
        let failed = letters(&fs::read(data_dir.join("failed")).unwrap());
        assert_eq!(&failed[..4], "cccc", "seed {seed}: a sync covered them");
        assert!(failed[4..].chars().all(|letter| "ab".contains(letter)), "seed {seed}: {failed}");
        seen[0].insert(bytes[..8].to_owned());
        seen[1].insert(bytes[16..].to_owned());
        seen[2].insert(replaced);
        seen[3].insert(data_dir.join("named").exists().to_string());
        seen[4].insert(failed);
        fs::remove_dir_all(&data_dir).unwrap();
    }
    let [overwritten, appended, replaced, named, failed] = seen.map(|states| states.len());
    assert!(overwritten > 3 && appended > 3, "torn in {overwritten} and {appended} ways");
    assert!(failed > 3, "what a failed sync left behind is torn in {failed} ways, whatever was synced later");
    assert_eq!((replaced, named), (2, 2), "each name change is kept at times and lost at times");
}

#[test]
fn without_faults_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let Some(machines) = Machines::make(dir.path(), 1).unwrap() else {
        eprintln!("skipped: there is no C compiler");
        return;
    };
    let launcher = machines.place(0, Place::default()).launcher;
    let data_dir = dir.path().join("n1");
    let script = "mkdir $0; cd $0; echo kept > file; sync file .";
    let ended =
        Command::new(&launcher[0]).args(&launcher[1..]).args(["sh", "-c", script]).arg(&data_dir).status();
    assert!(ended.unwrap().success());
    let loss = machines.of(0).lose_power(&mut Random::new(1, 0)).unwrap();
    assert_eq!(fs::read_to_string(data_dir.join("file")).unwrap(), "kept\n");
    assert_eq!(loss.changes, 0);
}

#[test]
fn a_process_without_the_shim_is_found_when_it_loses_power() {
    let dir = tempfile::tempdir().unwrap();
    let Some(machines) = Machines::make(dir.path(), 1).unwrap() else {
        eprintln!("skipped: there is no C compiler");
        return;
    };
    fs::create_dir(dir.path().join("n1")).unwrap();
    let lost = machines.of(0).lose_power(&mut Random::new(1, 0));
    assert!(lost.is_err_and(|error| error.contains("no journal")));
}
