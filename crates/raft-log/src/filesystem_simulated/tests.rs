//! What is left of writes and names after a loss of power, as told by the cases that the log's own tests rely on.

use super::*;

/// A disk with a synced file, an unsynced write to it, and an unsynced rename of it.
fn disk() -> SimulatedFileSystem {
    let fs = SimulatedFileSystem::new();
    let file = fs.create(Path::new("d/a")).unwrap();
    file.write_at(&[1; 1024], 0).unwrap();
    file.sync_data().unwrap();
    fs.sync_dir(Path::new("d")).unwrap();
    file.write_at(&[2; 1024], 0).unwrap();
    fs.rename(Path::new("d/a"), Path::new("d/b")).unwrap();
    fs
}

#[test]
fn what_was_not_synced_is_lost_or_kept_as_asked() {
    let fs = disk();
    assert_eq!(fs.operations(), 6);
    let lost = fs.after_power_loss(Survival::Nothing, 0);
    assert_eq!((lost.read(Path::new("d/a")), lost.paths().len()), (vec![1; 1024], 1));
    let kept = fs.after_power_loss(Survival::Everything, 0);
    assert_eq!((kept.read(Path::new("d/b")), kept.paths().len()), (vec![2; 1024], 1));
    let killed = fs.after_kill();
    assert_eq!(killed.read(Path::new("d/b")), [2; 1024]);
    assert_eq!(killed.after_power_loss(Survival::Nothing, 0).read(Path::new("d/a")), [1; 1024]);
}

#[test]
fn a_torn_write_is_torn_between_sectors() {
    let seen = (0..64)
        .map(|seed| {
            let bytes = disk().after_power_loss(Survival::TornWrites, seed).read(Path::new("d/b"));
            assert!(bytes[..512].iter().all(|byte| *byte == bytes[0]));
            assert!(bytes[512..].iter().all(|byte| *byte == bytes[512]));
            (bytes[0], bytes[512])
        })
        .collect::<BTreeSet<_>>();
    assert_eq!(seen.len(), 4);
}

#[test]
fn pages_of_a_failed_sync_are_never_written() {
    let fs = disk();
    let file = fs.open(Path::new("d/b")).unwrap();
    fs.fail_at(0, Fault::SyncFails);
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    fs.sync_dir(Path::new("d")).unwrap();
    assert_eq!(fs.read(Path::new("d/b")), [2; 1024]);
    assert_eq!(fs.after_power_loss(Survival::Everything, 0).read(Path::new("d/b")), [1; 1024]);
}

#[test]
fn an_allocated_file_has_its_length_after_a_power_loss_and_nothing_of_it_before() {
    let path = Path::new("d/a");
    assert!(SimulatedFileSystem::new().create_allocated(path, 1024).unwrap().is_none());
    for (lost_at, len) in [(2, 0), (3, 1024)] {
        let fs = SimulatedFileSystem::allocating();
        fs.fail_at(lost_at, Fault::PowerLoss);
        assert_eq!(fs.create_allocated(path, 1024).is_ok(), len > 0);
        let _ = fs.sync_dir(Path::new("d"));
        let found = fs.after_power_loss(Survival::Everything, 0);
        assert_eq!((found.read(path), fs.allocations()), (vec![0; len], u64::from(len > 0)));
    }
}

#[test]
fn after_power_is_lost_nothing_is_written() {
    let fs = SimulatedFileSystem::new();
    fs.fail_at(2, Fault::PowerLoss);
    let file = fs.create(Path::new("d/a")).unwrap();
    assert!(file.write_at(b"x", 0).is_err() && file.write_at(b"y", 1).is_err());
    let found = fs.after_power_loss(Survival::Everything, 0);
    assert_eq!((found.read(Path::new("d/a")), fs.operations()), (b"x".to_vec(), 2));
}
