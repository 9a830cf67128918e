import com.twitter.finagle.common.zookeeper.ServerSet;
import com.twitter.finagle.common.zookeeper.ServerSetImpl;
import com.twitter.finagle.common.zookeeper.ZooKeeperClient;
import com.twitter.util.Duration;
import java.net.InetSocketAddress;
import java.util.Map;
import java.util.Scanner;
import java.util.TreeMap;

/**
 * Joins Finagle's server sets, as told line by line; each line is answered by one.
 *
 * <pre>join PATH HOST PORT SHARD [NAME=PORT]…   with additional endpoints
 * leave PATH</pre>
 *
 * At the end of its input it leaves all of them.
 */
public class ServerSetMember {
    private final ZooKeeperClient client;
    private final Map<String, ServerSet.EndpointStatus> joined = new TreeMap<>();

    private ServerSetMember(String connect) {
        String[] parts = connect.split(":");
        InetSocketAddress server = new InetSocketAddress(parts[0], Integer.parseInt(parts[1]));
        client = new ZooKeeperClient(Duration.fromSeconds(10), server);
    }

    public static void main(String[] args) throws Exception {
        ServerSetMember member = new ServerSetMember(args[0]);
        member.client.get();
        System.out.println("ready");
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            member.obey(lines.nextLine().split(" "));
            System.out.println("done");
        }
        member.client.close();
        System.exit(0);
    }

    private void obey(String[] words) throws Exception {
        if (words[0].equals("leave")) {
            joined.remove(words[1]).leave();
            return;
        }
        Map<String, InetSocketAddress> others = new TreeMap<>();
        for (int i = 5; i < words.length; i++) {
            String[] other = words[i].split("=", 2);
            others.put(other[0], address(words[2], other[1]));
        }
        ServerSet set = new ServerSetImpl(client, words[1]);
        joined.put(words[1], set.join(address(words[2], words[3]), others, Integer.parseInt(words[4])));
    }

    private static InetSocketAddress address(String host, String port) {
        return InetSocketAddress.createUnresolved(host, Integer.parseInt(port));
    }
}
