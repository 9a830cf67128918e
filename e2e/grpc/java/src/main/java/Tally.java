import io.grpc.Status;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.TreeMap;

/** What came of a number of calls; callbacks of many threads add to it. */
final class Tally {
    private final long began = System.nanoTime();
    private final Map<String, Integer> counts = new TreeMap<>();
    private final Map<String, Integer> failures = new TreeMap<>();
    private int calls;

    synchronized void add(Status status, byte[] reply) {
        calls++;
        if (status.isOk()) {
            counts.merge(new String(reply, StandardCharsets.UTF_8), 1, Integer::sum);
        } else {
            failures.merge(status.getCode() + ": " + status.getDescription(), 1, Integer::sum);
        }
    }

    synchronized Map<String, Object> report() {
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("calls", calls);
        report.put("counts", counts);
        report.put("failures", failures);
        report.put("seconds", Math.round((System.nanoTime() - began) / 1e6) / 1e3);
        return report;
    }
}
