//! Names of the steps as users see them.

use crate::Step;

impl Step {
    /// The step's name in error records and latency breakdowns: `mount-proc` for `STEP_MOUNT_PROC`.
    #[must_use]
    pub fn name(self) -> String {
        self.as_str_name().trim_start_matches("STEP_").to_ascii_lowercase().replace('_', "-")
    }
}

#[cfg(test)]
mod tests {
    use crate::Step;

    #[test]
    fn names_are_kebab_case() {
        assert_eq!(Step::MountProc.name(), "mount-proc");
        assert_eq!(Step::Exec.name(), "exec");
    }
}
