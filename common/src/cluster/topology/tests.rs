use super::*;
use proptest::prelude::*;

const VIEW: &str = "\
07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:30004@31004,hostname4 slave e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 0 1426238317239 4 connected
67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1 127.0.0.1:30002@31002,,shard-id=0123 master - 0 1426238316232 2 connected 5461-10922
292f8b365bb7edb5e285caf0b7e6ddc7265d2f4f fd00::12:30003@31003 master,fail? - 1426238318243 1426238318243 3 disconnected 10923-16383
6ec23923021cf3ffec47632106199cb7f496ce01 :0@0 slave,fail,noaddr 67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1 0 1426238316232 5 disconnected
e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 127.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-77 80 [78->-67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1] [93-<-292f8b365bb7edb5e285caf0b7e6ddc7265d2f4f]
";

#[test]
fn reads_every_field() {
    let view = NodesView::parse(VIEW).unwrap();
    let myself = view.myself();
    assert_eq!(myself.id.short(), "e7d1eecc");
    assert_eq!(myself.slots.len(), 79);
    assert_eq!(myself.open_slots.len(), 2);
    assert_eq!(myself.open_slots[0].kind, OpenSlotKind::Migrating);
    assert_eq!(myself.open_slots[1].kind, OpenSlotKind::Importing);
    let [replica, failing, primary, gone, _] = view.nodes() else {
        panic!("five nodes")
    };
    assert_eq!(replica.primary, Some(myself.id));
    assert_eq!(replica.hostname.as_deref(), Some("hostname4"));
    assert_eq!(primary.hostname, None);
    assert_eq!(primary.address.unwrap().bus_port, 31002);
    assert_eq!(
        failing.address.unwrap().client(),
        "[fd00::12]:30003".parse().unwrap()
    );
    assert!(failing.is_failing() && !failing.linked);
    assert!(gone.address.is_none() && gone.flags.has(Flag::Fail));
    let heard = |node: &ClusterNode| view.last_heard(node.id).map(Timestamp::as_millisecond);
    assert_eq!(heard(failing), Some(1_426_238_318_243));
    assert_eq!(heard(gone), Some(1_426_238_316_232));
    assert_eq!(heard(primary), None);
}

#[test]
fn a_node_is_found_by_its_id() {
    let view = NodesView::parse(VIEW).unwrap();
    for node in view.nodes() {
        assert_eq!(view.get(node.id), Some(node.as_ref()));
    }
    assert_eq!(view.get(NodeId::from_bytes([0; 20])), None);
    let shaking = VIEW.replace(
        "master - 0 1426238316232",
        "master,handshake - 0 1426238316232",
    );
    let shaking = NodesView::parse(&shaking).unwrap();
    let primary = "67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1".parse().unwrap();
    assert_eq!(shaking.get(primary), None);
}

#[test]
fn says_what_is_wrong() {
    let broken = VIEW.replace("1426238318243 3", "1426238318243 new");
    let error = NodesView::parse(&broken).unwrap_err().to_string();
    assert!(error.contains("config-epoch"), "{error}");
    let unmarked = VIEW.replace("myself,", "");
    assert_eq!(NodesView::parse(&unmarked), Err(TopologyError::Myself));
    assert!(
        "E7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca"
            .parse::<NodeId>()
            .is_err()
    );
}

#[test]
fn a_line_owns_its_ranges_and_no_bitmap() {
    let nodes: u16 = 500;
    let lines = (0..nodes).map(|number| {
        let mark = if number == 0 { "myself," } else { "" };
        let first = u32::from(number) * 32;
        let last = first + 31;
        format!("{number:040x} 10.0.0.1:6379@16379 {mark}master - 0 0 1 connected {first}-{last}\n")
    });
    let view = NodesView::parse(&lines.collect::<String>()).unwrap();
    let ranges: usize = view
        .nodes()
        .iter()
        .map(|node| node.slots.ranges().len())
        .sum();
    assert_eq!(ranges, usize::from(nodes));
    assert!(size_of::<SlotSet>() <= 24, "a set is a list of its ranges");
}

#[test]
fn reads_cluster_info() {
    let info = ClusterInfo::parse(
        "cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\ncluster_known_nodes:6\r\n\
         cluster_size:3\r\ncluster_current_epoch:6\r\ncluster_my_epoch:2\r\n",
    );
    assert!(info.ok && info.slots_ok == 16384 && info.known_nodes == 6 && info.my_epoch == 2);
}

proptest! {
    #[test]
    fn ids_survive_the_way_through_text(bytes: [u8; 20]) {
        let id = NodeId::from_bytes(bytes);
        prop_assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let _ = NodesView::parse(&text);
    }
}
